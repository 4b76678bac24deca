//! Where a restore may write: below directories that the policy names, never over what is there.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::journal::{Intent, Journal};
use crate::manifest::{Disk, Manifest};
use crate::paths;

/// Mode of directories that only we need.
pub(super) const OURS: u32 = 0o700;
/// Mode of directories that QEMU or swtpm must pass through.
pub(super) const PASSED: u32 = 0o711;
/// Left free on the target's file system, in bytes.
const MARGIN: u64 = 16 << 20;

/// The real path of a directory, if the policy allows restores there.
///
/// A directory that does not exist yet is made with this `mode`, but only below one that is allowed.
pub(super) fn allowed(
    dir: &Path,
    roots: &[PathBuf],
    mode: u32,
    journal: &mut Journal,
) -> Result<PathBuf> {
    let refuse = || {
        let roots: Vec<String> = roots
            .iter()
            .map(|root| root.display().to_string())
            .collect();
        anyhow::anyhow!(
            "restores may not write to {}; choose a directory below {}",
            dir.display(),
            roots.join(" or ")
        )
    };
    let clean = dir.is_absolute()
        && dir.components().all(|part| {
            matches!(
                part,
                std::path::Component::RootDir | std::path::Component::Normal(_)
            )
        });
    if !clean || !paths::is_below(dir, roots) {
        return Err(refuse());
    }
    // Links may lead out of what is allowed, so this comes before anything is made.
    let real = resolve(dir)?;
    let real_roots: Vec<PathBuf> = roots.iter().filter_map(|root| resolve(root).ok()).collect();
    if !paths::is_below(&real, &real_roots) {
        return Err(refuse());
    }
    let mut missing: Vec<&Path> = real.ancestors().take_while(|dir| !dir.exists()).collect();
    missing.reverse();
    for dir in missing {
        journal.intend(&Intent::Dir { path: dir.into() })?;
        std::fs::create_dir(dir)
            .and_then(|()| std::fs::set_permissions(dir, Permissions::from_mode(mode)))
            .with_context(|| format!("cannot make the directory {}", dir.display()))?;
    }
    // Somebody may have put a link there in that moment.
    if real.canonicalize()? == real {
        Ok(real)
    } else {
        Err(refuse())
    }
}

/// A path without links, also if its end does not exist yet. A link to nowhere is an error: what it
/// should lead to may only be missing at the moment.
fn resolve(path: &Path) -> Result<PathBuf> {
    let mut end = Vec::new();
    let mut there = path;
    loop {
        match there.symlink_metadata() {
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                end.extend(there.file_name());
                there = there.parent().context("a path begins at the root")?;
            }
            Err(e) => return Err(e).with_context(|| format!("cannot look at {}", there.display())),
        }
    }
    let mut real = there
        .canonicalize()
        .with_context(|| format!("{} leads nowhere; mount or remove it", there.display()))?;
    real.extend(end.iter().rev());
    Ok(real)
}

/// Refuses what exists, links that lead nowhere included.
pub(super) fn refuse_file(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(_) => bail!(
            "{} exists; move it away, or restore to another place or under a new name",
            path.display()
        ),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("cannot look at {}", path.display())),
    }
}

/// Most bytes that a disk holds while its chain is written: what it held in each of the jobs since it
/// started, which gave it its file, as far as the newest one's size reaches. Zeros that a later part brings
/// take nothing back.
pub(super) fn most_bytes(disk: &Disk, manifests: &[Manifest]) -> u64 {
    let states = manifests
        .iter()
        .filter_map(|manifest| manifest.disk(&disk.target))
        .filter(|state| state.file == disk.file);
    let most = states.map(|state| state.nonzero_bytes).max();
    most.unwrap_or(0).max(disk.nonzero_bytes).min(disk.size)
}

/// Is there room for `bytes` more?
pub(super) fn room(dir: &Path, bytes: u64) -> Result<()> {
    let fs = rustix::fs::statvfs(dir)?;
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    let needed = bytes.saturating_add(MARGIN);
    ensure!(
        free >= needed,
        "{} has {} MiB free, the restore needs {}; make room or choose another directory",
        dir.display(),
        free >> 20,
        needed >> 20
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::sample;
    use crate::repair;

    #[test]
    fn room_is_needed_for_what_a_chain_holds_on_its_way() {
        let manifest = |file: &str, nonzero_bytes: u64| {
            let mut manifest = sample();
            manifest.disks[0] = Disk {
                size: 500,
                file: file.into(),
                nonzero_bytes,
                ..manifest.disks[0].clone()
            };
            manifest
        };
        let most = |manifests: &[Manifest]| most_bytes(&manifests[0].disks[0], manifests);
        let (full, over) = ("vda.raw", "vda.2026-01-31_22.00.00_05.raw");
        assert_eq!(most(&[manifest(full, 100)]), 100);
        // The disk has grown, or lost content that must be written first.
        assert_eq!(most(&[manifest(full, 300), manifest(full, 100)]), 300);
        assert_eq!(most(&[manifest(full, 100), manifest(full, 300)]), 300);
        // What was before it started over does not come.
        let chain = [
            manifest(over, 200),
            manifest(full, 400),
            manifest(over, 100),
        ];
        assert_eq!(most(&chain), 200);
        assert_eq!(most(&[manifest(full, 100), manifest(full, 900)]), 500);
    }

    #[test]
    fn directories_outside_the_policy_are_refused_links_included() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("allowed");
        std::fs::create_dir(&root).unwrap();
        let roots = [root.clone()];
        let mut journal = Journal::begin(&dir.path().join("journal"), "web01", "j", "").unwrap();
        let mut allowed = |path: &Path| allowed(path, &roots, OURS, &mut journal).is_ok();
        assert!(allowed(&root.join("a/b")));
        let mode = root.join("a").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, OURS);
        assert!(!allowed(dir.path()));
        assert!(!allowed(&root.join("../x")));
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        let [out, nowhere] = ["out", "nowhere"].map(|name| root.join(name));
        std::os::unix::fs::symlink(&outside, &out).unwrap();
        std::os::unix::fs::symlink(dir.path().join("missing"), &nowhere).unwrap();
        assert!(!allowed(&out));
        assert!(!allowed(&out.join("a")) && !outside.join("a").exists());
        assert!(!allowed(&nowhere) && !allowed(&nowhere.join("a")));
        // What was made for a restore that fails is known, and goes again.
        let places = crate::paths::Places {
            run: dir.path().join("run"),
            state: dir.path().join("state"),
        };
        repair::journal(&places, journal.path(), &mut |_| {}).unwrap();
        assert!(!root.join("a").exists() && root.exists() && nowhere.is_symlink());
    }
}
