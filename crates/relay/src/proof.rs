//! What a job log says of a proof.
//!
//! The worker writes these lines; `lab-backup verify` reads them out of the catalog, where the daemons
//! put words of theirs in front.

use std::fmt;

/// A disk that is what its backup recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk<'a> {
    /// Key of the VM.
    pub vm: &'a str,
    /// Target of the disk.
    pub target: &'a str,
    /// The root, hexadecimal.
    pub root: &'a str,
}

impl fmt::Display for Disk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, target, root } = self;
        write!(f, "{vm}/{target}: proven, root {root}")
    }
}

impl<'a> Disk<'a> {
    /// Finds such a line of this VM; `None` if it says anything else.
    pub fn read(line: &'a str, vm: &'a str) -> Option<Self> {
        let text = own(line, vm)?.strip_prefix('/')?;
        let (target, root) = text.split_once(": proven, root ")?;
        let plain = |text: &str| {
            (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
        };
        (plain(target) && plain(root)).then_some(Self { vm, target, root })
    }
}

/// All that was asked for is proven: the last line of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole<'a> {
    /// Key of the VM.
    pub vm: &'a str,
    /// Disks that were proven.
    pub disks: usize,
    /// Small files that were proven.
    pub files: usize,
}

impl fmt::Display for Whole<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, disks, files } = self;
        write!(f, "{vm}: verified: disks proven: {disks}, files: {files}")
    }
}

impl<'a> Whole<'a> {
    /// Finds such a line of this VM; `None` if it says anything else.
    pub fn read(line: &'a str, vm: &'a str) -> Option<Self> {
        let text = own(line, vm)?.strip_prefix(": verified: disks proven: ")?;
        let (disks, files) = text.split_once(", files: ")?;
        Some(Self {
            vm,
            disks: disks.parse().ok()?,
            files: files.parse().ok()?,
        })
    }
}

/// What a line of the job log says behind the VM's key.
fn own<'a>(line: &'a str, vm: &str) -> Option<&'a str> {
    // In front stand a time, a daemon and "JobId 7: "; the words of a plugin begin behind that.
    let text = line.split_once(" JobId ").map_or(line, |(_, rest)| {
        rest.split_once(": ").map_or(rest, |(_, text)| text)
    });
    text.trim_end().strip_prefix(vm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_behind_the_words_of_the_daemons() {
        let disk = Disk {
            vm: "web01",
            target: "vda",
            root: "00ff",
        };
        let whole = Whole {
            vm: "web01",
            disks: 2,
            files: 5,
        };
        for front in ["", "31-Jan 22:00 hv1-fd JobId 12: "] {
            let line = format!("{front}{disk}\n");
            assert_eq!(Disk::read(&line, "web01"), Some(disk.clone()));
            assert_eq!(Disk::read(&line, "web0"), None);
            assert_eq!(Whole::read(&line, "web01"), None);
            let line = format!("{front}{whole}");
            assert_eq!(Whole::read(&line, "web01"), Some(whole));
            assert_eq!(Disk::read(&line, "web01"), None);
        }
    }

    #[test]
    fn other_lines_prove_nothing() {
        for line in [
            "",
            "web01",
            "web01/vda: unverified: no manifest came with it",
            "web01/../x: proven, root 00",
            "web01/vda: proven, root ",
            "web01: verified: disks proven: all, files: 1",
            "x web01/vda: proven, root 00",
            "hv1-fd JobId 7: x web01/vda: proven, root 00",
        ] {
            assert_eq!(Disk::read(line, "web01"), None, "{line}");
            assert_eq!(Whole::read(line, "web01"), None, "{line}");
        }
    }
}
