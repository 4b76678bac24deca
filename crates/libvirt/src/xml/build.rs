//! Writing the XML of backups and checkpoints.

use std::fmt::Write;
use std::path::Path;

use super::{CheckpointView, XmlError, escape, path_text};

/// A disk in a backup. Every disk of the domain must be named: libvirt would otherwise decide by
/// itself whether the disk takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupDisk<'a> {
    /// Target, such as `vda`.
    pub target: &'a str,
    /// How it is read; none leaves it out.
    pub read: Option<BackupRead<'a>>,
}

/// How a disk is read during a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupRead<'a> {
    /// qcow2 image that takes the old content of blocks which the guest overwrites meanwhile.
    pub scratch: &'a Path,
    /// Name of the NBD export.
    pub export: &'a str,
    /// Checkpoint since which changes are wanted. The export then has the bitmap
    /// `qemu:dirty-bitmap:` + [`BackupRead::bitmap`].
    pub since: Option<&'a str>,
    /// Name of that bitmap in the export; ignored without `since`.
    pub bitmap: &'a str,
}

/// A disk in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointDisk<'a> {
    /// Target, such as `vda`.
    pub target: &'a str,
    /// Name of the bitmap to make; none leaves the disk out, as raw disks must be.
    pub bitmap: Option<&'a str>,
}

/// The XML of a pull-mode backup that exports the disks over NBD on a Unix socket. libvirt wants at
/// least one disk.
pub fn backup_xml(socket: &Path, disks: &[BackupDisk]) -> Result<String, XmlError> {
    let mut out = String::from("<domainbackup mode='pull'>\n");
    line(
        &mut out,
        format_args!("  <server transport='unix' socket='{}'/>", path(socket)?),
    );
    out.push_str("  <disks>\n");
    for disk in disks {
        let target = escape(disk.target)?;
        let Some(read) = &disk.read else {
            line(
                &mut out,
                format_args!("    <disk name='{target}' backup='no'/>"),
            );
            continue;
        };
        let since = match read.since {
            None => "backupmode='full'".to_owned(),
            Some(checkpoint) => format!(
                "backupmode='incremental' incremental='{}' exportbitmap='{}'",
                escape(checkpoint)?,
                escape(read.bitmap)?
            ),
        };
        let export = escape(read.export)?;
        line(
            &mut out,
            format_args!(
                "    <disk name='{target}' backup='yes' type='file' {since} exportname='{export}'>"
            ),
        );
        out.push_str("      <driver type='qcow2'/>\n");
        line(
            &mut out,
            format_args!("      <scratch file='{}'/>", path(read.scratch)?),
        );
        out.push_str("    </disk>\n");
    }
    out.push_str("  </disks>\n</domainbackup>\n");
    Ok(out)
}

/// The XML of a checkpoint. libvirt wants at least one disk.
pub fn checkpoint_xml(name: &str, disks: &[CheckpointDisk]) -> Result<String, XmlError> {
    write_checkpoint(name, "", disks)
}

/// The XML of a checkpoint that is there, to define it again with the bitmaps of `keep` alone. See
/// [`crate::Domain::checkpoint_redefine`].
pub fn checkpoint_again_xml(view: &CheckpointView, keep: &[&str]) -> Result<String, XmlError> {
    let mut facts = String::new();
    if let Some(parent) = &view.parent {
        let parent = escape(parent)?;
        line(
            &mut facts,
            format_args!("  <parent><name>{parent}</name></parent>"),
        );
    }
    if let Some(time) = view.creation_time {
        line(
            &mut facts,
            format_args!("  <creationTime>{time}</creationTime>"),
        );
    }
    let disks: Vec<CheckpointDisk> = view
        .disks
        .iter()
        .map(|disk| CheckpointDisk {
            target: &disk.target,
            bitmap: disk
                .bitmap
                .as_deref()
                .filter(|_| keep.contains(&disk.target.as_str())),
        })
        .collect();
    write_checkpoint(&view.name, &facts, &disks)
}

fn write_checkpoint(name: &str, facts: &str, disks: &[CheckpointDisk]) -> Result<String, XmlError> {
    let mut out = String::from("<domaincheckpoint>\n");
    line(&mut out, format_args!("  <name>{}</name>", escape(name)?));
    out.push_str(facts);
    out.push_str("  <disks>\n");
    for disk in disks {
        let target = escape(disk.target)?;
        match disk.bitmap {
            None => line(
                &mut out,
                format_args!("    <disk name='{target}' checkpoint='no'/>"),
            ),
            Some(bitmap) => line(
                &mut out,
                format_args!(
                    "    <disk name='{target}' checkpoint='bitmap' bitmap='{}'/>",
                    escape(bitmap)?
                ),
            ),
        }
    }
    out.push_str("  </disks>\n</domaincheckpoint>\n");
    Ok(out)
}

fn path(path: &Path) -> Result<String, XmlError> {
    escape(path_text(path)?)
}

fn line(out: &mut String, text: std::fmt::Arguments) {
    writeln!(out, "{text}").expect("writing into a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::super::BackupView;
    use super::*;

    const HOSTILE: &str = "$(id) \"q\" & <x> 'y' `z`";

    #[test]
    fn hostile_values_come_back_as_they_were() {
        let scratch = format!("/s/{HOSTILE}.qcow2");
        let disks = [
            BackupDisk {
                target: HOSTILE,
                read: Some(BackupRead {
                    scratch: Path::new(&scratch),
                    export: HOSTILE,
                    since: Some(HOSTILE),
                    bitmap: HOSTILE,
                }),
            },
            BackupDisk {
                target: "vdb",
                read: None,
            },
        ];
        let xml = backup_xml(Path::new(&scratch), &disks).unwrap();
        let view = BackupView::parse(&xml).unwrap();
        assert_eq!(view.socket.as_deref(), Some(scratch.as_str()));
        let first = &view.disks[0];
        assert_eq!(first.target, HOSTILE);
        assert_eq!(first.scratch.as_deref(), Some(scratch.as_str()));
        assert_eq!(first.export.as_deref(), Some(HOSTILE));
        assert_eq!(first.since.as_deref(), Some(HOSTILE));
        assert!(first.included && !view.disks[1].included);

        let disks = [
            CheckpointDisk {
                target: "vda",
                bitmap: Some(HOSTILE),
            },
            CheckpointDisk {
                target: "vdb",
                bitmap: None,
            },
        ];
        let xml = checkpoint_xml(HOSTILE, &disks).unwrap();
        let view = CheckpointView::parse(&xml).unwrap();
        assert_eq!(view.name, HOSTILE);
        assert_eq!(view.disks[0].bitmap.as_deref(), Some(HOSTILE));
        assert_eq!(view.disks[1].bitmap, None);

        let view = CheckpointView {
            parent: Some(HOSTILE.into()),
            creation_time: Some(7),
            ..view
        };
        let again = checkpoint_again_xml(&view, &["vda"]).unwrap();
        assert_eq!(CheckpointView::parse(&again).unwrap(), view);
        let none = CheckpointView::parse(&checkpoint_again_xml(&view, &[]).unwrap()).unwrap();
        assert!(none.disks.iter().all(|disk| disk.bitmap.is_none()));
    }

    #[test]
    fn what_xml_cannot_carry_is_refused() {
        for name in ["a\0", "a\u{1}", "\u{ffff}"] {
            assert!(
                matches!(checkpoint_xml(name, &[]), Err(XmlError::BadValue { .. })),
                "{name:?}"
            );
        }
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/\xff"));
        assert!(matches!(
            backup_xml(path, &[]),
            Err(XmlError::BadValue { .. })
        ));
    }
}
