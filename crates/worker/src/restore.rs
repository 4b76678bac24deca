//! One restore: take parts back, prove them, put them in place.
//!
//! Images are written under temporary names. Nothing is renamed, and no domain defined, before every
//! disk's root was recomputed and compared with the manifest. A restore may also be for that proof
//! alone: then it is the same one without images.

mod allowed;
mod back;
mod check;
mod compare;
mod decide;
mod differences;
mod image;
mod machine;
mod needs;
mod place;
mod proof;
mod sink;
mod state;
mod target;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use relay::frame::{Header, Kind};
use relay::message::{End, FileKind, Go, PartHead};
use relay::options::Target;

use crate::manifest::Manifest;
use crate::paths;
use crate::serve::Job;
use crate::session::Session;
use image::Image;
use target::Plan;

/// How long libvirt and file systems may take over what is asked before the first byte is written.
const PLAN_LIMIT: Duration = Duration::from_secs(90);
/// Most manifests that one restore may bring: one for each job of a chain.
const MAX_MANIFESTS: usize = 4096;

/// Bytes that pass sooner than in two minutes, even over a slow line.
const SHORT: u64 = 1 << 30;

/// What came so far.
struct Taken {
    manifests: Vec<Manifest>,
    /// Small files by name; a later part replaces an earlier one.
    small: BTreeMap<String, Vec<u8>>,
    /// Images by target.
    images: BTreeMap<String, Image>,
    /// Decided when the first part comes.
    plan: Option<Plan>,
    /// Why there is no plan; said at the end.
    refused: Option<anyhow::Error>,
    files: u64,
    bytes: u64,
}

/// Runs a restore from OBJECT to END.
pub fn run(session: &mut Session, job: &Job) -> Result<End> {
    let mut taken = Taken {
        manifests: Vec::new(),
        small: BTreeMap::new(),
        images: BTreeMap::new(),
        plan: None,
        refused: None,
        files: 0,
        bytes: 0,
    };
    let outcome = take(session, job, &mut taken).and_then(|()| match &mut taken.plan {
        Some(plan) => place::finish(session.line(), plan, &mut taken.images, &taken.small),
        // Nothing of ours was selected.
        None => Ok(()),
    });
    // What is still open must be closed before it can be removed.
    taken.images.clear();
    if let Some(plan) = taken.plan {
        plan.close(session.line(), outcome.is_ok())?;
    }
    outcome.map(|()| End {
        files: taken.files,
        bytes: taken.bytes,
    })
}

/// Takes everything up to FINISH.
fn take(session: &mut Session, job: &Job, taken: &mut Taken) -> Result<()> {
    loop {
        let header = session.next("PART")?;
        match header.kind {
            Kind::Object => object(session, header, taken)?,
            Kind::Part => {
                let head: PartHead = session.reader().json(header)?;
                part(session, job, &head, taken)?;
            }
            Kind::Finish => return taken.refused.take().map_or(Ok(()), Err),
            other => bail!("a {other:?} frame came where PART or FINISH was due"),
        }
    }
}

fn object(session: &mut Session, header: Header, taken: &mut Taken) -> Result<()> {
    ensure!(
        taken.manifests.len() < MAX_MANIFESTS,
        "more than {MAX_MANIFESTS} manifests"
    );
    let text = session.reader().bytes(header)?;
    taken.manifests.push(Manifest::parse(&text)?);
    Ok(())
}

fn part(session: &mut Session, job: &Job, head: &PartHead, taken: &mut Taken) -> Result<()> {
    if head.kind == FileKind::Directory {
        session.go(Go::Done)?;
        return Ok(());
    }
    let (vm, file) = paths::parse_catalog(&head.path)?;
    if taken.plan.is_none() && taken.refused.is_none() {
        let line = session.line().clone();
        let limit = line.within(PLAN_LIMIT, format!("plan the restore of {vm}"));
        let plan =
            wish(job).and_then(|target| target::plan(&line, job, &target, vm, &taken.manifests));
        drop(limit);
        match plan {
            Ok(plan) => taken.plan = Some(plan),
            Err(e) if is_short(&taken.manifests) => taken.refused = Some(e),
            Err(e) => return Err(e),
        }
    }
    if taken.refused.is_some() {
        session.go(Go::Skip)?;
        return Ok(());
    }
    if file.starts_with(&format!("{}/", paths::CHAIN)) {
        // It has done its work in the catalog.
        session.go(Go::Done)?;
        return Ok(());
    }
    let plan = taken.plan.as_mut().context("a plan was just made")?;
    ensure!(
        plan.vm() == vm,
        "one restore brings back one VM, but both {} and {vm} are selected",
        plan.vm()
    );
    match paths::disk_of(file) {
        Some(disk) if !plan.wants(disk) || plan.is_stale(disk, file) => {
            session.go(Go::Skip)?;
            return Ok(());
        }
        Some(disk) => {
            let image = match taken.images.entry(disk.to_owned()) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(new) => new.insert(plan.image(disk)?),
            };
            image.begin_part(head).with_context(|| format!("VM {vm}"))?;
            session.go(Go::Write)?;
            taken.bytes += receive(session, |offset, bytes| image.write(offset, bytes))?;
        }
        None if !plan.wants_file(file) => {
            session.go(Go::Skip)?;
            return Ok(());
        }
        None => {
            let content = small(session, vm, file, head.size, &taken.small)?;
            taken.bytes += content.len() as u64;
            taken.small.insert(file.to_owned(), content);
        }
    }
    taken.files += 1;
    Ok(())
}

/// What the restore is asked for.
fn wish(job: &Job) -> Result<Target> {
    let regex = job.hello.regex_where.as_deref().unwrap_or_default();
    ensure!(
        regex.is_empty(),
        "RegexWhere is not supported for VMs; use where with options instead"
    );
    let place = job.hello.where_.as_deref().unwrap_or_default();
    Ok(Target::parse(place)?)
}

/// Is all that the Storage Daemon will send soon passed?
///
/// A File Daemon that gives up while the Storage Daemon still sends waits two minutes for its side of
/// TLS to close. What passes sooner is let through, and the refusal said then.
fn is_short(manifests: &[Manifest]) -> bool {
    let bytes = manifests.iter().flat_map(|manifest| {
        let disks = manifest.disks.iter().map(|disk| disk.sent_bytes);
        disks.chain(manifest.files.iter().map(|file| file.size))
    });
    let total = bytes.fold(0, u64::saturating_add);
    !manifests.is_empty() && total <= SHORT
}

/// Takes a small file of `size` bytes into memory.
fn small(
    session: &mut Session,
    vm: &str,
    file: &str,
    size: u64,
    known: &BTreeMap<String, Vec<u8>>,
) -> Result<Vec<u8>> {
    let others = || known.iter().filter(|(name, _)| *name != file);
    let total: u64 = others().map(|(_, content)| content.len() as u64).sum();
    ensure!(
        size <= check::limit(file) && total.saturating_add(size) <= check::MAX_SMALL,
        "the file {file} of {vm} has {} MiB: more than one of a VM can have",
        size >> 20
    );
    ensure!(
        others().count() < check::MAX_FILES,
        "{vm} comes with more than {} small files",
        check::MAX_FILES
    );
    session.go(Go::Write)?;
    let mut content = Vec::with_capacity(usize::try_from(size)?);
    receive(session, |offset, bytes| {
        ensure!(
            offset == content.len() as u64,
            "{file} does not come in order"
        );
        ensure!(
            content.len() as u64 + bytes.len() as u64 <= size,
            "{file} of {vm} comes with more than its {size} bytes"
        );
        content.extend_from_slice(&bytes);
        Ok(bytes)
    })?;
    ensure!(
        content.len() as u64 == size,
        "{file} of {vm} came with {} bytes of {size}",
        content.len()
    );
    Ok(content)
}

/// Takes DATA frames until FILE-END; the number of bytes. `take` gives a buffer for the next one.
fn receive(
    session: &mut Session,
    mut take: impl FnMut(u64, Vec<u8>) -> Result<Vec<u8>>,
) -> Result<u64> {
    let mut total = 0;
    let mut buffer = Vec::new();
    loop {
        let header = session.next("DATA")?;
        match header.kind {
            Kind::Data => {
                buffer.resize(header.len as usize, 0);
                session.reader().payload(&mut buffer)?;
                buffer = take(header.offset, buffer)?;
                total += u64::from(header.len);
            }
            Kind::FileEnd => return Ok(total),
            other => bail!("a {other:?} frame came where DATA or FILE-END was due"),
        }
    }
}

#[cfg(test)]
mod tests;
