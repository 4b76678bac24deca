//! The end of a restore: prove every disk, put everything in place, define the domain last.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::allowed::OURS;
use super::back::Back;
use super::check::Small;
use super::image::Image;
use super::target::{Goal, Machine, Plan};
use super::{compare, machine, proof};
use crate::journal::{Intent, Journal};
use crate::owner::Ids;
use crate::paths;
use crate::session::Line;

/// How long libvirt may take over the definition, and over the start if that is wanted.
const DEFINE_LIMIT: Duration = Duration::from_secs(300);

/// Runs the end of a restore. When it fails, the journal names what must go again.
pub(super) fn finish(
    line: &Line,
    plan: &mut Plan,
    images: &mut BTreeMap<String, Image>,
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<()> {
    let vm = plan.vm().to_owned();
    let compared = proof::compare(line, plan, images, files)?;
    let mut moves = compared.moves();
    let small = &compared.small;
    let wanted = match &plan.goal {
        Goal::Proof { disks } => {
            still_wanted(line, &vm)?;
            return compared.conclude(line, plan, disks.as_deref());
        }
        Goal::Files { dir } => {
            if small.keys().any(|name| name.contains('/')) {
                make_dir(&mut plan.journal, &dir.join(paths::TPM))?;
            }
            small
                .iter()
                .map(|(name, content)| Put::new(dir.join(name), content))
                .collect()
        }
        Goal::Machine(machine) => {
            for target in machine.images.keys() {
                ensure!(
                    moves
                        .iter()
                        .any(|(_, path)| Some(path) == machine.images.get(target).map(|i| &i.0)),
                    "the restore did not bring disk {target} of VM {vm}; nothing was put in place"
                );
            }
            state_of(&vm, machine, small)?
        }
    };
    for put in wanted {
        let temp = plan.temp(&put.path)?;
        plan.journal.intend(&Intent::File { path: temp.clone() })?;
        write_new(&temp, &put).with_context(|| format!("cannot write {}", put.path.display()))?;
        moves.push((temp, put.path));
    }
    let definition = match &plan.goal {
        Goal::Machine(machine) => {
            let base = base(line, &vm, small)?;
            Some((base, machine::definition(line, &vm, machine, base)?))
        }
        _ => None,
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
    let manifest = plan.newest_manifest().cloned();
    match (&plan.goal, &definition) {
        (Goal::Machine(machine), Some((base, xml))) => {
            let back = Back {
                line,
                vm: &vm,
                machine,
                manifest: manifest.as_ref(),
                base,
                xml,
            };
            let _limit = line.within(DEFINE_LIMIT, format!("define VM {vm}"));
            let domain = back.define(&mut plan.journal)?;
            still_wanted(line, &vm)?;
            plan.journal.intend(&Intent::Keep)?;
            back.finish(&domain);
            Ok(())
        }
        (Goal::Files { dir }, _) => {
            line.info(format!("{vm}: files are in {}", dir.display()));
            still_wanted(line, &vm)?;
            Ok(plan.journal.intend(&Intent::Keep)?)
        }
        _ => bail!("no definition for VM {vm}"),
    }
}

/// A file to be put in place.
struct Put<'a> {
    path: PathBuf,
    content: &'a [u8],
    ids: Ids,
}

impl<'a> Put<'a> {
    /// One that stays root's.
    fn new(path: PathBuf, content: &'a [u8]) -> Self {
        Self {
            path,
            content,
            ids: Ids::default(),
        }
    }
}

/// The state of a VM beside its disks.
fn state_of<'a>(vm: &str, machine: &Machine, small: &Small<'a>) -> Result<Vec<Put<'a>>> {
    let get = |name: &str| {
        small.get(name).copied().with_context(|| {
            format!("the restore did not bring {name} of VM {vm}; nothing was put in place")
        })
    };
    let mut puts = Vec::new();
    if let Some(nvram) = &machine.nvram {
        puts.push(Put {
            path: nvram.path.clone(),
            content: get("nvram.fd")?,
            ids: nvram.ids,
        });
    }
    for file in machine.tpm.iter().flat_map(|tpm| &tpm.files) {
        let tpm = machine.tpm.as_ref().context("a TPM has files")?;
        let name = file.rsplit('/').next().unwrap_or_default();
        puts.push(Put {
            path: tpm.dir.join(name),
            content: get(file)?,
            ids: tpm.ids,
        });
    }
    for boot in machine.boot.iter().filter(|boot| boot.ours) {
        puts.push(Put::new(boot.path.clone(), get(&boot.file)?));
    }
    Ok(puts)
}

/// The definition that the restored one is made from.
fn base<'a>(line: &Line, vm: &str, small: &Small<'a>) -> Result<&'a str> {
    let text = |name: &str| -> Result<Option<&'a str>> {
        let Some(bytes) = small.get(name).copied() else {
            return Ok(None);
        };
        let text = std::str::from_utf8(bytes).with_context(|| format!("{name} is not text"))?;
        Ok(Some(text))
    };
    let live = text("domain.xml")?.context("the restore did not bring domain.xml")?;
    Ok(compare::base(line, vm, live, text("domain-inactive.xml")?))
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

fn make_dir(journal: &mut Journal, path: &Path) -> Result<()> {
    journal.intend(&Intent::Dir { path: path.into() })?;
    std::fs::create_dir(path)
        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(OURS)))
        .with_context(|| format!("cannot make the directory {}", path.display()))
}

fn write_new(path: &Path, put: &Put<'_>) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    put.ids.own(path)?;
    file.write_all(put.content)?;
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
