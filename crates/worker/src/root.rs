//! `lab-backup-worker root`: does this image hold what the manifest says?

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Context, Result, bail};
use blockmap::{Key, Root};

use crate::manifest::{Disk, Manifest};

/// What a proof came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Proof {
    /// Target of the disk.
    pub target: String,
    /// Root that the manifest records.
    pub recorded: Root,
    /// Root of the image.
    pub found: Root,
}

/// Computes the root of a raw image and puts it beside the manifest's.
///
/// Without `target`, the disk is the one whose file name the image has, or the only one.
pub fn prove(image: &Path, manifest: &Path, target: Option<&str>) -> Result<Proof> {
    let text =
        std::fs::read(manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    let manifest = Manifest::parse(&text)?;
    let disk = choose(&manifest, image, target)?;
    let key: Key = manifest
        .key
        .parse()
        .context("the manifest's key is damaged")?;
    let recorded: Root = disk
        .root
        .parse()
        .context("the manifest's root is damaged")?;
    let file = File::open(image).with_context(|| format!("cannot open {}", image.display()))?;
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let found = blockmap::root_of(&file, disk.size, &key, threads)
        .with_context(|| format!("cannot compute the root of {}", image.display()))?;
    Ok(Proof {
        target: disk.target.clone(),
        recorded,
        found,
    })
}

fn choose<'a>(manifest: &'a Manifest, image: &Path, target: Option<&str>) -> Result<&'a Disk> {
    let names = || {
        let names: Vec<&str> = manifest
            .disks
            .iter()
            .map(|disk| disk.target.as_str())
            .collect();
        names.join(", ")
    };
    if let Some(target) = target {
        return manifest
            .disk(target)
            .with_context(|| format!("the manifest has no disk {target}; it has {}", names()));
    }
    let by_name = image.file_name().and_then(|name| {
        manifest
            .disks
            .iter()
            .find(|disk| name.to_str() == Some(disk.file.as_str()))
    });
    match (by_name, manifest.disks.as_slice()) {
        (Some(disk), _) | (None, [disk]) => Ok(disk),
        _ => bail!(
            "which disk is {}? say --disk with one of {}",
            image.display(),
            names()
        ),
    }
}
