//! The pull method: libvirt's backup job exports the instant over NBD, for a VM that runs.

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use blockmap::Key;
use libvirt::{BackupFlags, BackupJob, Error, Kind};

use super::chain::Start;
use super::look::{self, Where};
use super::metadata::Metadata;
use super::pass::Look;
use super::prepare::{Live, Ready};
use super::stream::Plan;
use super::watch::Watch;
use super::{ASK_LIMIT, CLEAR_LIMIT, Taken};
use super::{checkpoint, instant, metadata, request, scratch, socket, stream};
use crate::guard::{Room, Scratch, Ward};
use crate::journal::{Intent, Journal};
use crate::manifest::Disk;
use crate::session::{Line, Session};
use crate::{agent, repair};

/// How long making the scratch images may take: their blocks are reserved, not written.
const SCRATCH_LIMIT: Duration = Duration::from_secs(300);

/// The part that leaves something behind if it is cut off: journalled, cleared by the caller.
pub(super) fn guarded(
    session: &mut Session,
    ready: &Ready<'_>,
    live: &Live,
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
    let watch = Watch::start(ready.job.places.guard_socket(), ward(ready, live))?;
    if let Room::Tight { limit } = watch.room() {
        line.warn(format!(
            "{vm}: scratch is not reserved; the backup ends before its images occupy {} MiB",
            limit >> 20
        ));
    }
    let limit = line.within(SCRATCH_LIMIT, format!("make the scratch images of {vm}"));
    for ((path, disk), size) in live.scratches.iter().zip(&ready.disks).zip(&ready.sizes) {
        journal.intend(&Intent::File { path: path.clone() })?;
        scratch::create(path, disk, *size, watch.room())?;
    }
    drop(limit);
    let limit = line.within(ASK_LIMIT, format!("begin the backup of {vm}"));
    let uuid = ready.domain.uuid().to_owned();
    let room = live
        .socket
        .parent()
        .context("a socket lies in a directory")?;
    journal.intend(&Intent::Dir { path: room.into() })?;
    socket::make_room(room, &ready.domain)?;
    journal.intend(&Intent::File {
        path: live.socket.clone(),
    })?;
    journal.intend(&Intent::Backup {
        uuid: uuid.clone(),
        socket: live.socket.clone(),
    })?;
    let others = request::others(ready)?;
    let checkpoint = checkpoint::xml(ready, &others)?;
    if checkpoint.is_some() {
        journal.intend(&Intent::Checkpoint {
            uuid: uuid.clone(),
            name: checkpoint::name(&ready.job.hello.job),
        })?;
    }
    let xml = request::xml(ready, live, &since(&starts, &looks), &others)?;
    let plain = request::xml(ready, live, &[], &others)?;
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
    let read = read_out(
        session,
        ready,
        &watch,
        key,
        plans(ready, live, starts, looks),
    );
    // Every reader is closed by now, whatever happened: only then may the job end.
    let limit = line.within(CLEAR_LIMIT, format!("end the backup of {vm}"));
    let ended = end(ready, live, backup);
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

/// The checkpoint whose bitmap each disk is read by.
fn since(starts: &[Start], looks: &[Option<Where>]) -> Vec<Option<String>> {
    let disks = starts.iter().zip(looks);
    disks
        .map(|(start, look)| match look {
            Some((Look::Bitmap | Look::Audit, _)) => {
                start.base().map(|base| checkpoint::name(&base.job))
            }
            _ => None,
        })
        .collect()
}

/// What the guard must know of the job.
fn ward(ready: &Ready<'_>, live: &Live) -> Ward {
    let scratch = Scratch {
        dir: ready.job.policy.scratch_dir.clone(),
        images: live.scratches.clone(),
        total: ready.sizes.iter().sum(),
        beside_images: live.beside_images,
        granted: None,
    };
    let socket = live.socket.clone();
    Ward::new(
        ready.vm,
        ready.domain.uuid(),
        &ready.job.hello.job,
        socket,
        scratch,
    )
}

/// How each disk is read.
fn plans<'a>(
    ready: &'a Ready<'_>,
    live: &Live,
    starts: Vec<Start>,
    looks: Vec<Option<Where>>,
) -> Vec<Plan<'a>> {
    let what = ready.disks.iter().zip(&ready.images);
    what.zip(starts)
        .zip(looks)
        .map(|(((disk, image), start), look)| Plan {
            disk,
            image,
            start,
            look,
            socket: live.socket.clone(),
            export: &disk.target,
        })
        .collect()
}

/// Sends the definition and every disk. All readers are closed when this returns.
fn read_out(
    session: &mut Session,
    ready: &Ready<'_>,
    watch: &Watch,
    key: &Key,
    plans: Vec<Plan<'_>>,
) -> Result<(Metadata, Vec<Disk>)> {
    let metadata = metadata::send(session, ready)?;
    let mut disks = Vec::new();
    for plan in plans {
        let target = &plan.disk.target;
        let sent = stream::disk(session, ready, plan, key, &|reader| watch.guards(reader))
            .and_then(|sent| watch.check().map(|()| sent))
            // Why a reader was closed matters more than that it was.
            .map_err(|e| watch.check().err().unwrap_or(e))
            .with_context(|| format!("{}/{target}", ready.vm))?;
        disks.push(sent);
    }
    Ok((metadata, disks))
}

/// Ends libvirt's job, if need be on a connection of its own. A call that hangs is given up after a
/// while; repair finds the job.
fn end(ready: &Ready<'_>, live: &Live, backup: BackupJob) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(40);
    let (op, name) = ("end the backup of", ready.domain.name());
    let ended = match libvirt::deadline::run(LIMIT, op, name, move || backup.end()) {
        // The daemon was restarted, or this connection hangs.
        Err(e) if matches!(e.kind, Kind::ConnectionLost | Kind::Timeout) => {
            let uuid = ready.domain.uuid().to_owned();
            let socket = live.socket.to_string_lossy().into_owned();
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
pub(super) fn remove_files(live: &Live) -> Result<()> {
    let mut first = Ok(());
    let room = live.socket.parent().map(Path::to_path_buf);
    for path in live.scratches.iter().chain([&live.socket]).chain(&room) {
        let removed = repair::remove(path).map(drop);
        if first.is_ok() {
            first = removed;
        } else if let Err(e) = removed {
            eprintln!("{e:#}");
        }
    }
    first
}
