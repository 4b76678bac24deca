//! The pull method: libvirt's backup job exports the instant over NBD, for a VM that runs.

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use blockmap::Key;
use libvirt::{BackupFlags, BackupJob, Error, Kind};

use super::chain::Start;
use super::look::{self, Where};
use super::pass::Look;
use super::prepare::Ready;
use super::stream::Plan;
use super::watch::Watch;
use super::{ASK_LIMIT, CLEAR_LIMIT, Taken};
use super::{checkpoint, instant, metadata, request, scratch, socket, stream};
use crate::guard::{Room, Scratch, Ward};
use crate::journal::{Intent, Journal};
use crate::session::{Line, Session};
use crate::{agent, repair};

/// How long making the scratch images may take: their blocks are reserved, not written.
const SCRATCH_LIMIT: Duration = Duration::from_secs(300);

/// The part that leaves something behind if it is cut off: journalled, cleared by the caller.
pub(super) fn guarded(
    session: &mut Session,
    ready: &Ready<'_>,
    key: &Key,
    starts: Vec<Start>,
    journal: &mut Journal,
) -> Result<Taken> {
    let line = session.line().clone();
    let vm = ready.vm;
    let limit = line.within(ASK_LIMIT, format!("check the bitmaps of {vm}"));
    let mut looks = look::decide(&line, ready, &starts)?;
    drop(limit);
    // From before the first byte of scratch: whatever comes after the begin may block.
    let watch = Watch::start(ready.job.places.guard_socket(), ward(ready))?;
    if let Room::Tight { limit } = watch.room() {
        line.warn(format!(
            "{vm}: scratch is not reserved; the backup ends before its images occupy {} MiB",
            limit >> 20
        ));
    }
    let limit = line.within(SCRATCH_LIMIT, format!("make the scratch images of {vm}"));
    for ((path, disk), size) in ready.scratches.iter().zip(&ready.disks).zip(&ready.sizes) {
        journal.intend(&Intent::File { path: path.clone() })?;
        scratch::create(path, disk, *size, watch.room())?;
    }
    drop(limit);
    let limit = line.within(ASK_LIMIT, format!("begin the backup of {vm}"));
    let uuid = ready.domain.uuid().to_owned();
    let room = ready
        .socket
        .parent()
        .context("a socket lies in a directory")?;
    journal.intend(&Intent::Dir { path: room.into() })?;
    socket::make_room(room, &ready.domain)?;
    journal.intend(&Intent::File {
        path: ready.socket.clone(),
    })?;
    journal.intend(&Intent::Backup {
        uuid: uuid.clone(),
        socket: ready.socket.clone(),
    })?;
    let others = request::others(ready)?;
    let checkpoint = checkpoint::xml(ready, &others)?;
    if checkpoint.is_some() {
        journal.intend(&Intent::Checkpoint {
            uuid: uuid.clone(),
            name: checkpoint::name(&ready.job.hello.job),
        })?;
    }
    let xml = request::xml(ready, &looks, &others)?;
    let plain = request::xml(ready, &[], &others)?;
    let quiet = instant::Quiet {
        vm,
        job: &ready.job.hello.job,
        quiesce: ready.policy.quiesce,
        limit_ms: ready.policy.freeze_ms,
        restart_libvirt: ready.job.policy.restart_libvirt,
        guard: &ready.job.places.guard_socket(),
    };
    let record = RefCell::new(journal);
    let ((backup, refused), instant) = instant::take(
        &line,
        &ready.domain,
        &quiet,
        || {
            let uuid = uuid.clone();
            Ok(record.borrow_mut().intend(&Intent::Freeze { uuid })?)
        },
        || {
            let flags = BackupFlags {
                reuse_external: true,
            };
            let begin = |xml: &str, checkpoint| ready.domain.backup_begin(xml, checkpoint, flags);
            match begin(&xml, checkpoint.as_deref()) {
                // Bitmaps are no reason to lose a backup.
                Err(e) if concerns_bitmaps(&e) => Ok((begin(&plain, None)?, Some(e))),
                begun => Ok((begun?, None)),
            }
        },
        || {
            let uuid = uuid.clone();
            Ok(record.borrow_mut().intend(&Intent::Thawed { uuid })?)
        },
    )?;
    if let (Some(frozen), Some(held)) = (instant.frozen_ms, instant.held_ms) {
        line.info(format!(
            "{vm}: frozen for {frozen} ms, {held} ms of them ours"
        ));
    }
    if let Some(e) = refused {
        without_bitmaps(&line, ready, &mut looks, &e);
    }
    drop(limit);
    let read = read_out(session, ready, &backup, &watch, key, starts, looks);
    // Every reader is closed by now, whatever happened: only then may the job end.
    let limit = line.within(CLEAR_LIMIT, format!("end the backup of {vm}"));
    let ended = end(ready, backup);
    drop(limit);
    drop(watch);
    let (metadata, disks) = read?;
    ended?;
    Ok(Taken {
        instant,
        metadata,
        disks,
    })
}

/// May a begin have failed over a checkpoint or bitmap, rather than over the domain or the connection?
fn concerns_bitmaps(error: &Error) -> bool {
    !matches!(
        error.kind,
        Kind::Busy | Kind::InvalidState | Kind::ConnectionLost | Kind::Timeout | Kind::Denied
    )
}

/// The backup was begun without bitmaps: it looks everywhere, and leaves no checkpoint.
fn without_bitmaps(line: &Line, ready: &Ready<'_>, looks: &mut [Option<Where>], why: &Error) {
    let vm = ready.vm;
    line.warn(format!(
        "{vm}: libvirt began the backup only without bitmaps, so every disk is read whole, now and by the \
         next increment: {why}"
    ));
    for look in looks.iter_mut().flatten() {
        *look = (Look::Everything, Some("libvirt refused its bitmap".into()));
    }
    // A begin that fails may have made its checkpoint all the same.
    let name = checkpoint::name(&ready.job.hello.job);
    if let Err(e) = checkpoint::drop_one(&ready.domain, &name) {
        line.warn(format!("{vm}: a checkpoint of this job may be left: {e}"));
    }
}

/// What the guard must know of the job.
fn ward(ready: &Ready<'_>) -> Ward {
    let scratch = Scratch {
        dir: ready.job.policy.scratch_dir.clone(),
        images: ready.scratches.clone(),
        total: ready.sizes.iter().sum(),
        beside_images: ready.beside_images,
        granted: None,
    };
    let socket = ready.socket.clone();
    Ward::new(
        ready.vm,
        ready.domain.uuid(),
        &ready.job.hello.job,
        socket,
        scratch,
    )
}

/// Sends the definition and every disk. All readers are closed when this returns.
fn read_out(
    session: &mut Session,
    ready: &Ready<'_>,
    backup: &BackupJob,
    watch: &Watch,
    key: &Key,
    starts: Vec<Start>,
    looks: Vec<Option<Where>>,
) -> Result<(metadata::Metadata, Vec<crate::manifest::Disk>)> {
    let vm = ready.vm;
    let line = session.line().clone();
    let limit = line.within(ASK_LIMIT, format!("read the definition of {vm}"));
    let metadata = metadata::take(backup.domain(), ready)?;
    drop(limit);
    for (file, content) in &metadata.files {
        session.small_file(&super::head(vm, file, content.len() as u64), content)?;
    }
    let mut disks = Vec::new();
    let what = ready.disks.iter().zip(&ready.images);
    for (((disk, image), start), look) in what.zip(starts).zip(looks) {
        let plan = Plan {
            disk,
            image,
            start,
            look,
            socket: ready.socket.clone(),
            export: &disk.target,
        };
        let sent = stream::disk(session, ready, plan, key, &|reader| watch.guards(reader))
            .and_then(|sent| watch.check().map(|()| sent))
            // Why a reader was closed matters more than that it was.
            .map_err(|e| watch.check().err().unwrap_or(e))
            .with_context(|| format!("{vm}/{}", disk.target))?;
        disks.push(sent);
    }
    Ok((metadata, disks))
}

/// Ends libvirt's job, if need be on a connection of its own. A call that hangs is given up after a
/// while; repair finds the job.
fn end(ready: &Ready<'_>, backup: BackupJob) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(40);
    let (op, name) = ("end the backup of", ready.domain.name());
    let ended = match libvirt::deadline::run(LIMIT, op, name, move || backup.end()) {
        // The daemon was restarted, or this connection hangs.
        Err(e) if matches!(e.kind, Kind::ConnectionLost | Kind::Timeout) => {
            let uuid = ready.domain.uuid().to_owned();
            let socket = ready.socket.to_string_lossy().into_owned();
            libvirt::deadline::run_on_new(agent::URI, LIMIT, op, name, move |connect| {
                connect.by_uuid(&uuid)?.end_backup(Some(&socket))
            })
        }
        ended => ended,
    };
    ended.with_context(|| format!("the backup job of {} may still run", ready.vm))?;
    Ok(())
}

/// Removes scratch images and the socket; goes on after an error and reports the first.
pub(super) fn remove_files(ready: &Ready<'_>) -> Result<()> {
    let mut first = Ok(());
    let room = ready.socket.parent().map(Path::to_path_buf);
    for path in ready.scratches.iter().chain([&ready.socket]).chain(&room) {
        let removed = repair::remove(path).map(drop);
        if first.is_ok() {
            first = removed;
        } else if let Err(e) = removed {
            eprintln!("{e:#}");
        }
    }
    first
}
