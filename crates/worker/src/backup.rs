//! One backup: the run, top to bottom, in the order it happens.

mod announce;
mod audit;
mod boot;
mod candidates;
mod chain;
pub(crate) mod checkpoint;
mod choose;
mod cold;
mod export;
mod image;
mod instant;
mod look;
mod metadata;
pub mod part;
mod pass;
mod prepare;
mod pull;
mod record;
mod request;
mod scratch;
mod settled;
mod socket;
mod still;
mod stream;
mod tpm;
mod watch;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use relay::message::{End, FileHead, FileKind};

use crate::journal::Journal;
use crate::manifest::{self, Manifest};
use crate::serve::Job;
use crate::session::Session;
use crate::{keys, lock, paths, repair};
pub(crate) use boot::MAX_BOOT;
pub use chain::{Asked, Start};
pub use export::Export;
pub use look::{Where, where_to_look};
pub(crate) use metadata::MAX_NVRAM;
use metadata::Metadata;
pub use pass::{Look, Reading, Report, Step};
use prepare::{Method, Ready, prepare};
pub use record::{Record, map_path, prune};

/// How long a job waits for another one of the same VM.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// How long libvirt may take over everything that is asked before the instant, or after it.
const ASK_LIMIT: Duration = Duration::from_secs(90);
/// How long the end of libvirt's job and the removal of files may take.
const CLEAR_LIMIT: Duration = Duration::from_secs(120);

/// What a reading of the whole VM came to.
struct Taken {
    instant: manifest::Instant,
    metadata: Metadata,
    disks: Vec<manifest::Disk>,
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
    let maps = &ready.maps;
    std::fs::create_dir_all(maps).with_context(|| format!("cannot make {}", maps.display()))?;
    blockmap::sweep(maps)?;
    let key = keys::load_or_create(&job.places.key(vm), |text| {
        line.warn(format!("{vm}: {text}"));
    })?;
    let (starts, rests_on) = chain::starts(session, &ready, &key)?;
    let mut journal = Journal::begin(
        &job.places.journal(),
        vm,
        &job.hello.job,
        ready.domain.uuid(),
    )
    .with_context(|| format!("cannot begin the journal of {vm}"))?;
    let taken = match &ready.method {
        Method::Pull(live) => pull::guarded(session, &ready, live, &key, starts, &mut journal),
        Method::Cold(reason) => cold::read(session, &ready, *reason, &key, starts),
    };
    let outcome = taken.and_then(|taken| {
        if let Method::Pull(live) = &ready.method {
            let _limit = line.within(CLEAR_LIMIT, format!("clear up after the backup of {vm}"));
            pull::remove_files(live)
                .with_context(|| format!("the data of {vm} was sent, but not cleared up"))?;
        }
        finish(session, &ready, &key, taken, rests_on)
    });
    match outcome {
        Ok(end) => {
            journal
                .end()
                .with_context(|| format!("cannot end the journal of {vm}"))?;
            Ok(end)
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
        session.file(&head(vm, &paths::disk_file(&disk.target, None), *size))?;
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

/// The head of a small file of the backup.
fn head(vm: &str, file: &str, size: u64) -> FileHead {
    FileHead {
        path: paths::catalog(vm, file),
        kind: FileKind::Regular,
        size,
        mtime: jiff::Timestamp::now().as_second(),
        mode: 0o600,
        part: 0,
        offsets: false,
        delta_on: None,
    }
}

/// The manifest goes last: it holds what the whole run came to.
fn finish(
    session: &mut Session,
    ready: &Ready<'_>,
    key: &blockmap::Key,
    taken: Taken,
    rests_on: BTreeSet<String>,
) -> Result<End> {
    let vm = ready.vm;
    let mut after = rests_on.clone();
    after.insert(ready.job.hello.prev_job.clone());
    after.remove("");
    let mut manifest = manifest(ready, key, taken, after);
    for boot in &ready.boot {
        let content = boot::read(boot).with_context(|| format!("VM {vm}"))?;
        let head = head(vm, &boot.file, content.len() as u64);
        session.small_file(&head, &content)?;
        manifest.files.push(metadata::record(&boot.file, &content));
    }
    let marker = chain::marker(&ready.job.hello.job);
    session.small_file(&head(vm, &marker, 0), &[])?;
    let text = manifest.to_json();
    session.small_file(&head(vm, "manifest.json", text.len() as u64), &text)?;
    let mut object = head(vm, "manifest", text.len() as u64);
    object.kind = FileKind::Object;
    session.small_file(&object, &text)?;
    let line = session.line();
    let over = manifest.disks.iter().all(|disk| disk.delta_seq == 0);
    let rests_on = if over { BTreeSet::new() } else { rests_on };
    let record = Record::of(ready, rests_on, &manifest.disks);
    record.write(&ready.maps)?;
    let keep = record::prune(&ready.maps, &record, ready.policy.differentials);
    // In the images of a VM that is off nothing is changed; the next job that finds it running does.
    if let Method::Pull(_) = ready.method {
        let _limit = line.within(ASK_LIMIT, format!("remove old checkpoints of {vm}"));
        checkpoint::remove(line, vm, &ready.domain, &keep);
    }
    let sum = |of: fn(&manifest::Disk) -> u64| manifest.disks.iter().map(of).sum::<u64>() >> 20;
    line.info(format!(
        "{vm}: {} disks, {} MiB of data, {} MiB sent, consistency {}",
        manifest.disks.len(),
        sum(|disk| disk.nonzero_bytes),
        sum(|disk| disk.sent_bytes),
        serde_json::to_string(&manifest.instant.consistency).unwrap_or_default()
    ));
    Ok(session.sent())
}

fn manifest(
    ready: &Ready<'_>,
    key: &blockmap::Key,
    taken: Taken,
    after: BTreeSet<String>,
) -> Manifest {
    let metadata = taken.metadata;
    Manifest {
        version: manifest::VERSION,
        vm: ready.vm.into(),
        job: ready.job.hello.job.clone(),
        job_id: ready.job.hello.job_id,
        after: after.into_iter().collect(),
        domain: ready.domain.name().into(),
        uuid: ready.domain.uuid().into(),
        hypervisor: ready.host.0.clone(),
        libvirt: ready.host.1.clone(),
        instant: taken.instant,
        key_id: key.id().to_string(),
        key: key.to_hex(),
        disks: taken.disks,
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
    }
}
