//! The end of a restore: prove every disk, put everything in place, define the domain last.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use blockmap::Root;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::image::Image;
use super::target::{Goal, Machine, Plan};
use super::{machine, target};
use crate::journal::Intent;
use crate::session::Line;

/// Runs the end of a restore. When it fails, the journal names what must go again.
pub(super) fn finish(
    line: &Line,
    plan: &mut Plan,
    images: &mut BTreeMap<String, Image>,
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<()> {
    let vm = plan.vm().to_owned();
    let mut moves: Vec<(PathBuf, PathBuf)> = Vec::new();
    for (target, image) in std::mem::take(images) {
        let written = image.finish().with_context(|| format!("{vm}/{target}"))?;
        prove(line, plan, &vm, &target, written.part, written.root)?;
        moves.push((written.temp, written.path));
    }
    let small = match &plan.goal {
        Goal::Files { dir } => files
            .iter()
            .map(|(name, content)| (dir.join(name), content.as_slice()))
            .collect(),
        Goal::Machine(machine) => {
            for target in machine.images.keys() {
                ensure!(
                    moves
                        .iter()
                        .any(|(_, path)| Some(path) == machine.images.get(target).map(|i| &i.0)),
                    "the restore did not bring disk {target} of VM {vm}; nothing was put in place"
                );
            }
            match (&machine.nvram, files.get("nvram.fd")) {
                (Some(path), Some(content)) => vec![(path.clone(), content.as_slice())],
                (Some(_), None) => bail!("the restore did not bring the NVRAM of VM {vm}"),
                (None, _) => Vec::new(),
            }
        }
    };
    for (path, content) in small {
        let temp = plan.temp(&path)?;
        plan.journal.intend(&Intent::File { path: temp.clone() })?;
        write_new(&temp, content).with_context(|| format!("cannot write {}", path.display()))?;
        moves.push((temp, path));
    }
    let definition = match &plan.goal {
        Goal::Files { .. } => None,
        Goal::Machine(machine) => {
            let xml = files
                .get("domain.xml")
                .context("the restore did not bring domain.xml")?;
            let xml = std::str::from_utf8(xml).context("domain.xml is not text")?;
            Some(machine::definition(line, &vm, machine, xml)?)
        }
    };
    // Proving takes a while; a restore that was cancelled meanwhile puts nothing in place.
    still_wanted(line, &vm)?;
    for (temp, path) in &moves {
        let facts = temp.symlink_metadata()?;
        plan.journal.intend(&Intent::Rename {
            path: path.clone(),
            file: (facts.dev(), facts.ino()),
        })?;
        put(temp, path)?;
    }
    match (&plan.goal, definition) {
        (Goal::Machine(machine), Some(xml)) => {
            // It may have come while the data did.
            target::refuse_existing(&machine.connect, &machine.name, &machine.uuid, &vm)?;
            plan.journal.intend(&Intent::Define {
                uuid: machine.uuid.clone(),
            })?;
            define(line, &vm, machine, &xml)?;
        }
        (Goal::Files { dir }, _) => line.info(format!("{vm}: files are in {}", dir.display())),
        (Goal::Machine(_), None) => bail!("no definition for VM {vm}"),
    }
    still_wanted(line, &vm)?;
    plan.journal.intend(&Intent::Keep)?;
    if let Goal::Machine(machine) = &plan.goal {
        start(line, machine)?;
    }
    Ok(())
}

/// Fails if nobody waits for this restore any more: its job was cancelled, or the File Daemon is gone.
fn still_wanted(line: &Line, vm: &str) -> Result<()> {
    line.alive();
    ensure!(
        !line.is_gone(),
        "the plugin left before the restore of {vm} was done; nothing was put in place"
    );
    Ok(())
}

/// Compares the root of what was written with the one that the job recorded.
fn prove(line: &Line, plan: &Plan, vm: &str, target: &str, part: u64, found: Root) -> Result<()> {
    let Some(record) = plan.record_of(target, part) else {
        if matches!(plan.goal, Goal::Machine(_)) {
            bail!(
                "{vm}/{target}: no manifest of the job that wrote this part; it cannot be proven"
            );
        }
        ensure!(
            plan.newest(target).is_none(),
            "{vm}/{target}: the manifest that came names another part of this disk; it cannot be proven"
        );
        line.warn(format!(
            "{vm}/{target}: unverified: no manifest came with it"
        ));
        return Ok(());
    };
    // A chain whose last part did not come is another instant than the rest of the machine.
    if let Some(newest) = plan.newest(target) {
        ensure!(
            newest.part == part,
            "{vm}/{target}: the newest part that the manifests name did not come with this restore"
        );
    }
    let recorded: Root = record
        .root
        .parse()
        .context("the manifest's root is damaged")?;
    ensure!(
        found == recorded,
        "{vm}/{target}: the restored image is not what was backed up: root {found}, recorded {recorded}"
    );
    line.info(format!("{vm}/{target}: proven, root {found}"));
    Ok(())
}

fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(())
}

/// Gives a file its name, never over another.
fn put(temp: &Path, path: &Path) -> Result<()> {
    renameat_with(CWD, temp, CWD, path, RenameFlags::NOREPLACE)
        .with_context(|| format!("cannot put {} in place", path.display()))?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

fn define(line: &Line, vm: &str, machine: &Machine, xml: &str) -> Result<()> {
    let domain = machine
        .connect
        .define(xml)
        .with_context(|| format!("cannot define VM {vm}"))?;
    line.info(format!(
        "{vm}: defined as {:?}, UUID {}",
        domain.name(),
        domain.uuid()
    ));
    Ok(())
}

fn start(line: &Line, machine: &Machine) -> Result<()> {
    if !machine.start {
        return Ok(());
    }
    let domain = machine.connect.by_uuid(&machine.uuid)?;
    // It is back, whether it starts or not: a failed start is a warning, not a failed restore.
    match domain.create() {
        Ok(()) => line.info(format!("{:?} started", machine.name)),
        Err(e) => line.warn(format!(
            "{:?} is back but does not start: {e}",
            machine.name
        )),
    }
    Ok(())
}
