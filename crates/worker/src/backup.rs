//! One backup: the run, top to bottom, in the order it happens.

mod announce;
mod boot;
mod choose;
mod image;
mod instant;
mod maps;
mod metadata;
mod request;
mod scratch;
mod settled;
mod socket;
mod stream;
mod tpm;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libvirt::xml::DomainView;
use libvirt::{BackupFlags, BackupJob, Connect, Domain, Kind, State, XmlFlags};
use relay::message::{End, FileHead, FileKind};
use relay::policy::Vm;

use crate::agent;
use crate::guard::{Room, Scratch, Ward};
use crate::journal::{Intent, Journal};
use crate::manifest::{Boot, LeftOut, Manifest};
use crate::paths::Places;
use crate::serve::Job;
use crate::session::{Line, Session};
use crate::{keys, lock, paths, repair};
pub(crate) use boot::MAX_BOOT;
use choose::Chosen;
use image::Image;
pub(crate) use metadata::MAX_NVRAM;
use metadata::Metadata;
pub use stream::{Block, scan};
use watch::Watch;

/// How long a job waits for another one of the same VM.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// How long libvirt may take over everything that is asked before the instant, or after it.
const ASK_LIMIT: Duration = Duration::from_secs(90);
/// How long the end of libvirt's job and the removal of files may take.
const CLEAR_LIMIT: Duration = Duration::from_secs(120);
/// How long making the scratch images may take: their blocks are reserved, not written.
const SCRATCH_LIMIT: Duration = Duration::from_secs(300);

/// Everything that is known before the guest is touched.
struct Ready<'a> {
    vm: &'a str,
    policy: &'a Vm,
    job: &'a Job,
    connect: Connect,
    domain: Domain,
    disks: Vec<Chosen>,
    sizes: Vec<u64>,
    left_out: Vec<LeftOut>,
    /// One for each disk.
    images: Vec<Image>,
    boot: Vec<Boot>,
    not_in_backup: Vec<String>,
    /// Host name, and version of libvirt: asked before the guest waits for anything.
    host: (String, String),
    /// Are there images of guests where the scratch images will be?
    beside_images: bool,
    socket: PathBuf,
    scratches: Vec<PathBuf>,
}

/// Backs up one VM.
pub fn run(session: &mut Session, job: &Job) -> Result<End> {
    let line = session.line().clone();
    let (vm, policy) = job.vm()?;
    check_job_name(&job.hello.job)?;
    let _lock = lock::take(&job.places.lock(vm), vm, &job.hello.job, LOCK_PATIENCE)?;
    let limit = line.within(ASK_LIMIT, format!("prepare the backup of {vm}"));
    repair::of_vm(&job.places, vm, |text| {
        line.warn(format!("{vm}: earlier job: {text}"))
    })
    .with_context(|| format!("cannot clear what an earlier job of {vm} left"))?;
    let ready = prepare(&line, vm, policy, job)?;
    drop(limit);
    announce::announce(&line, &ready);
    let mut journal = Journal::begin(
        &job.places.journal(),
        vm,
        &job.hello.job,
        ready.domain.uuid(),
    )
    .with_context(|| format!("cannot begin the journal of {vm}"))?;
    match guarded(session, &ready, &mut journal) {
        Ok(manifest) => {
            let limit = line.within(CLEAR_LIMIT, format!("clear up after the backup of {vm}"));
            remove_files(&ready)
                .and_then(|()| Ok(journal.end()?))
                .with_context(|| format!("the data of {vm} was sent, but not cleared up"))?;
            drop(limit);
            finish(session, &ready, manifest)
        }
        Err(e) => {
            // As after a kill: libvirt's job ends before its files go, and what cannot be taken back
            // now stays in the journal.
            let _limit = line.within(CLEAR_LIMIT, format!("clear up after the backup of {vm}"));
            let path = journal.path().to_path_buf();
            if let Err(also) = repair::journal(&job.places, &path, &mut |text| eprintln!("{text}"))
            {
                line.warn(format!("{vm}: clearing up failed too: {also:#}"));
            }
            Err(e)
        }
    }
}

/// Lists what a backup would send, with true sizes.
pub fn estimate(session: &mut Session, job: &Job) -> Result<End> {
    let (vm, policy) = job.vm()?;
    let line = session.line().clone();
    let limit = line.within(ASK_LIMIT, format!("look at {vm}"));
    let ready = prepare(&line, vm, policy, job)?;
    drop(limit);
    for (disk, size) in ready.disks.iter().zip(&ready.sizes) {
        session.file(&head(vm, &disk.file(), *size, 0))?;
        session.file_end()?;
    }
    Ok(session.sent())
}

/// Bacula makes these names; they become file names here.
fn check_job_name(job: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-:".contains(&b);
    ensure!(
        (1..=blockmap::MAX_JOB).contains(&job.len())
            && job.bytes().all(plain)
            && !job.starts_with('.'),
        "the job name {job:?} is not one of Bacula's"
    );
    Ok(())
}

/// The head of a file of the backup.
fn head(vm: &str, file: &str, size: u64, part: u64) -> FileHead {
    FileHead {
        path: paths::catalog(vm, file),
        kind: FileKind::Regular,
        size,
        mtime: jiff::Timestamp::now().as_second(),
        mode: 0o600,
        part,
        offsets: part != 0,
        delta_on: None,
    }
}

fn find(vm: &str, policy: &Vm) -> Result<(Connect, Domain)> {
    let connect = Connect::open(agent::URI)?;
    let found = match &policy.uuid {
        Some(uuid) => connect.by_uuid(uuid),
        None => connect.by_name(&policy.domain),
    };
    match found {
        Ok(domain) => Ok((connect, domain)),
        Err(e) if e.kind == Kind::NotFound => bail!(
            "VM {vm}: no domain {:?} on this hypervisor; correct vms.{vm} in lab.toml or retire it",
            policy.domain
        ),
        Err(e) => Err(e.into()),
    }
}

fn prepare<'a>(line: &Line, vm: &'a str, policy: &'a Vm, job: &'a Job) -> Result<Ready<'a>> {
    let (connect, domain) = find(vm, policy)?;
    let state = domain.state()?;
    ensure!(
        state == State::Running,
        "VM {vm} is {state} and its backup needs it running; start it and run the backup again"
    );
    refuse_foreign_job(line, vm, &domain, &job.places)?;
    let view = DomainView::parse(&domain.xml(XmlFlags::default())?)?;
    let (disks, left_out) = choose::choose(vm, &view, &policy.exclude, &volume_path(&connect))?;
    let boot = boot::files(&view)?;
    let sizes = disks
        .iter()
        .map(|disk| Ok(domain.block_info(&disk.target)?.capacity_bytes))
        .collect::<Result<Vec<u64>>>()?;
    let scratch_dir = &job.policy.scratch_dir;
    let images: Vec<Image> = disks.iter().map(image::look).collect();
    // Not to know counts as yes.
    let (mut grow, known) = images_of_all(&connect).map_or((Vec::new(), false), |all| (all, true));
    grow.extend(images.iter().filter_map(|image| image.data_file.clone()));
    let beside_images = scratch::check(scratch_dir, &grow)? || !known;
    let name = &job.hello.job;
    Ok(Ready {
        vm,
        policy,
        job,
        host: (connect.hostname()?, connect.lib_version()?.to_string()),
        connect,
        beside_images,
        socket: socket::path(&job.places.nbd(), job.hello.job_id),
        scratches: disks
            .iter()
            .map(|disk| scratch::path(scratch_dir, name, disk))
            .collect(),
        images,
        not_in_backup: metadata::not_in_backup(&view, domain.uuid()),
        boot,
        domain,
        disks,
        sizes,
        left_out,
    })
}

/// The images of every domain of this host: where one of them is, room is not ours alone.
fn images_of_all(connect: &Connect) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for domain in connect.domains()? {
        let xml = match domain.xml(XmlFlags::default()) {
            Err(e) if e.kind == Kind::NotFound => continue,
            xml => xml?,
        };
        for disk in DomainView::parse(&xml)?.disks {
            let below = disk.backing.iter().map(|image| &image.source);
            let sources = [&disk.source].into_iter().chain(below);
            paths.extend(sources.filter_map(|source| source.path().map(PathBuf::from)));
        }
    }
    Ok(paths)
}

/// Asks libvirt where a volume is.
fn volume_path(connect: &Connect) -> impl Fn(&str, &str) -> std::result::Result<String, String> {
    let connect = connect.clone();
    move |pool, volume| {
        let found = connect.volume_path(pool, volume);
        found.map_err(|e| e.message)
    }
}

/// Refuses a VM that has a backup job already, unless it is an orphan of ours.
fn refuse_foreign_job(line: &Line, vm: &str, domain: &Domain, places: &Places) -> Result<()> {
    if repair::end_orphan(domain, places)? {
        line.warn(format!(
            "{vm}: ended a backup job that began after its worker had died"
        ));
    }
    ensure!(
        domain.backup_xml()?.is_none(),
        "VM {vm} has a backup job of somebody else; wait for it, or end it with virsh domjobabort"
    );
    Ok(())
}

/// The part that leaves something behind if it is cut off: journalled, cleared by the caller.
fn guarded(session: &mut Session, ready: &Ready<'_>, journal: &mut Journal) -> Result<Manifest> {
    let line = session.line().clone();
    let vm = ready.vm;
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
    let xml = request::xml(ready)?;
    let quiet = instant::Quiet {
        vm,
        job: &ready.job.hello.job,
        quiesce: ready.policy.quiesce,
        limit_ms: ready.policy.freeze_ms,
        restart_libvirt: ready.job.policy.restart_libvirt,
        guard: &ready.job.places.guard_socket(),
    };
    let record = std::cell::RefCell::new(journal);
    let (backup, instant) = instant::take(
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
            Ok(ready.domain.backup_begin(&xml, None, flags)?)
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
    drop(limit);
    let sent = read_out(session, ready, &backup, &watch);
    // Every reader is closed by now, whatever happened: only then may the job end.
    let limit = line.within(CLEAR_LIMIT, format!("end the backup of {vm}"));
    let ended = end(ready, backup);
    drop(limit);
    drop(watch);
    let (metadata, disks, key) = sent?;
    ended?;
    Ok(Manifest {
        version: crate::manifest::VERSION,
        vm: vm.into(),
        job: ready.job.hello.job.clone(),
        job_id: ready.job.hello.job_id,
        domain: ready.domain.name().into(),
        uuid: ready.domain.uuid().into(),
        hypervisor: ready.host.0.clone(),
        libvirt: ready.host.1.clone(),
        instant,
        key_id: key.id().to_string(),
        key: key.to_hex(),
        disks,
        left_out: ready.left_out.clone(),
        not_in_backup: ready.not_in_backup.clone(),
        files: metadata
            .files
            .iter()
            .map(|(name, content)| metadata::record(name, content))
            .collect(),
        nvram: metadata.nvram,
        tpm: metadata.tpm,
        boot: ready.boot.clone(),
        autostart: metadata.autostart,
        needs: metadata.needs,
        snapshots: metadata.snapshots,
        checkpoints: metadata.checkpoints,
    })
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
) -> Result<(Metadata, Vec<crate::manifest::Disk>, blockmap::Key)> {
    let vm = ready.vm;
    let line = session.line().clone();
    let limit = line.within(ASK_LIMIT, format!("read the definition of {vm}"));
    let metadata = metadata::take(backup.domain(), ready)?;
    drop(limit);
    for (file, content) in &metadata.files {
        session.small_file(&head(vm, file, content.len() as u64, 0), content)?;
    }
    let key = keys::load_or_create(&ready.job.places.key(vm))?;
    let maps = ready.job.places.maps(vm);
    std::fs::create_dir_all(&maps).with_context(|| format!("cannot make {}", maps.display()))?;
    blockmap::sweep(&maps)?;
    let mut disks = Vec::new();
    for (disk, image) in ready.disks.iter().zip(&ready.images) {
        let sent = stream::disk(session, ready, disk, &key, &maps, watch, image.clone())
            .with_context(|| format!("{vm}/{}", disk.target))?;
        disks.push(sent);
    }
    Ok((metadata, disks, key))
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
fn remove_files(ready: &Ready<'_>) -> Result<()> {
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

/// The manifest goes last: it holds what the whole run came to.
fn finish(session: &mut Session, ready: &Ready<'_>, mut manifest: Manifest) -> Result<End> {
    for boot in &ready.boot {
        let content = boot::read(boot).with_context(|| format!("VM {}", ready.vm))?;
        let head = head(ready.vm, &boot.file, content.len() as u64, 0);
        session.small_file(&head, &content)?;
        manifest.files.push(metadata::record(&boot.file, &content));
    }
    let text = manifest.to_json();
    session.small_file(
        &head(ready.vm, "manifest.json", text.len() as u64, 0),
        &text,
    )?;
    let mut object = head(ready.vm, "manifest", text.len() as u64, 0);
    object.kind = FileKind::Object;
    session.small_file(&object, &text)?;
    maps::prune(ready);
    let nonzero: u64 = manifest.disks.iter().map(|disk| disk.nonzero_bytes).sum();
    session.line().info(format!(
        "{}: {} disks, {} MiB of data, consistency {}",
        ready.vm,
        manifest.disks.len(),
        nonzero >> 20,
        serde_json::to_string(&manifest.instant.consistency).unwrap_or_default()
    ));
    Ok(session.sent())
}
