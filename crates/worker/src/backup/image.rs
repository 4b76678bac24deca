//! What is special about a disk's image: what lies below it, beside it and inside it.
//!
//! These are facts about the image, not about the instant, and taken before it. The format is always
//! the one that libvirt's XML says: a guest can write a qcow2 header into a raw disk, which a probe
//! would believe.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::choose::Chosen;
use crate::manifest::Below;
use crate::tool;

/// How long `qemu-img` may look at one chain.
const PATIENCE: Duration = Duration::from_secs(20);

/// Facts of one image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) chain: Vec<Below>,
    pub(super) data_file: Option<PathBuf>,
    pub(super) snapshots: Vec<String>,
    /// Of a qcow2 image: is it a version that can hold bitmaps?
    pub(super) bitmaps: bool,
    /// Likewise: bytes of a cluster.
    pub(super) cluster: Option<u64>,
    /// Why the facts may be incomplete.
    pub(super) unknown: Option<String>,
}

impl Image {
    /// Can the disk have a dirty bitmap that is kept in its image, and that covers all of it? What is in
    /// a data file may be written past QEMU.
    pub(super) fn can_have_bitmap(&self, disk: &Chosen) -> bool {
        disk.format == "qcow2" && self.bitmaps && self.data_file.is_none() && self.unknown.is_none()
    }
}

/// Asks `qemu-img`. What it cannot tell is no reason to lose a backup: the data comes from QEMU, which
/// has the chain open.
pub(super) fn look(disk: &Chosen) -> Image {
    match ask(disk) {
        Ok(image) => image,
        Err(e) => Image {
            chain: disk.chain.clone(),
            unknown: Some(format!("{e:#}")),
            ..Image::default()
        },
    }
}

fn ask(disk: &Chosen) -> Result<Image> {
    let mut command = tool::command("qemu-img");
    // -U: QEMU has it open for writing; nothing is read here that the guest writes.
    command.args(["info", "-U", "--backing-chain", "--output=json", "-f"]);
    command.arg(&disk.format).arg(&disk.source);
    let said = tool::run_within(&mut command, PATIENCE)
        .with_context(|| format!("cannot look at {}", disk.source.display()))?;
    read(&said, &disk.source)
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    filename: PathBuf,
    format: String,
    #[serde(default)]
    cluster_size: Option<u64>,
    #[serde(default)]
    snapshots: Vec<Named>,
    #[serde(default)]
    format_specific: Specific,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Default, Deserialize)]
struct Specific {
    #[serde(default)]
    data: Data,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Data {
    /// Of qcow2: `0.10` or `1.1`.
    #[serde(default)]
    compat: Option<String>,
    #[serde(default)]
    data_file: Option<PathBuf>,
}

fn read(json: &[u8], source: &Path) -> Result<Image> {
    let chain: Vec<Info> =
        serde_json::from_slice(json).context("qemu-img's answer is not understood")?;
    let mut images = chain.into_iter();
    let top = images.next().context("qemu-img says nothing")?;
    // It may be written relative to the image.
    let dir = source.parent().unwrap_or(Path::new("/"));
    Ok(Image {
        bitmaps: top.format_specific.data.compat.as_deref() == Some("1.1"),
        cluster: top.cluster_size,
        data_file: top
            .format_specific
            .data
            .data_file
            .map(|file| dir.join(file)),
        snapshots: top.snapshots.into_iter().map(|s| s.name).collect(),
        chain: images
            .map(|image| Below {
                path: image.filename,
                format: image.format,
            })
            .collect(),
        unknown: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_answer_is_read() {
        let json = br#"[
            {"filename": "/i/a.qcow2", "format": "qcow2", "virtual-size": 1, "cluster-size": 65536, "snapshots": [{"name": "one", "id": "1"}],
             "format-specific": {"type": "qcow2", "data": {"compat": "1.1", "data-file": "a.data"}}},
            {"filename": "/i/b.raw", "format": "raw", "virtual-size": 1}]"#;
        let image = read(json, Path::new("/i/a.qcow2")).unwrap();
        assert_eq!(image.data_file.as_deref(), Some(Path::new("/i/a.data")));
        assert!(image.bitmaps);
        assert_eq!(image.cluster, Some(65536));
        assert_eq!(image.snapshots, ["one"]);
        assert_eq!(image.chain.len(), 1);
        assert_eq!(
            (
                image.chain[0].path.as_path(),
                image.chain[0].format.as_str()
            ),
            (Path::new("/i/b.raw"), "raw")
        );
        for bad in ["", "[]", "{}", "[{}]"] {
            assert!(read(bad.as_bytes(), Path::new("/i")).is_err(), "{bad}");
        }
    }
}
