//! Everything that shall exist on this host, as plain values: what [`crate::render`] makes of a
//! model, and what [`crate::plan`] compares with what is there.

use std::path::PathBuf;

use highway::{HighwayHash, HighwayHasher};

/// Who a file or directory belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// root.
    Root,
    /// The account that runs the containers.
    Account,
}

/// A directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dir {
    /// Where.
    pub(crate) path: PathBuf,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Whose.
    pub(crate) owner: Owner,
}

/// A file that belongs to root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// Where.
    pub(crate) path: PathBuf,
    /// The whole text.
    pub(crate) text: String,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Must the text never be shown?
    pub(crate) secret: bool,
}

/// A container image in the account's store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// Its full name.
    pub(crate) tag: String,
    /// Where it comes from if it is absent.
    pub(crate) source: Source,
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A root file system.
    Import {
        /// The tar file.
        tar: PathBuf,
    },
    /// A Containerfile.
    Build {
        /// Directory of the Containerfile.
        dir: PathBuf,
        /// Image to build on.
        base: String,
    },
    /// A registry.
    Pull,
}

/// A Podman secret of the account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Secret {
    /// Its name.
    pub(crate) name: String,
    /// File that holds the value; written before the secret is made.
    pub(crate) file: PathBuf,
    /// Fingerprint of the value, kept as a label: Podman does not show values.
    pub(crate) fingerprint: String,
}

/// Which service manager a unit belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The host's.
    System,
    /// The account's own.
    Account,
}

/// A unit that shall run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    /// Its full name.
    pub(crate) unit: String,
    /// Whose.
    pub(crate) scope: Scope,
    /// Must it be enabled by hand? Generated units are enabled by their file.
    pub(crate) enable: bool,
    /// Fingerprint of all it reads only when it starts; a change means a restart. Empty means
    /// that it never needs one.
    pub(crate) starts_with: String,
    /// Fingerprint of what it can read again while it runs; a change means a reload.
    pub(crate) reloads: Option<String>,
    /// Configuration that it reads. Somebody may have changed a file and started the unit since,
    /// so a file that had to be put right is read again whatever the fingerprints say.
    pub(crate) files: Vec<PathBuf>,
    /// Files that belong to it besides: when it does not come up, they go back with the others.
    pub(crate) beside: Vec<PathBuf>,
}

/// The mark of the directory of the volumes: where it is missing, something else lies at that path, such as the
/// empty directory below a share that is not mounted, and the Storage Daemon does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sentinel {
    /// The file in that directory.
    pub(crate) path: PathBuf,
    /// A file of ours with the same text.
    pub(crate) record: PathBuf,
    /// What both hold.
    pub(crate) text: String,
    /// Names the directory; when it changes, another one is marked.
    pub(crate) place: String,
    /// What is mounted there instead of what should be.
    pub(crate) elsewhere: Option<String>,
}

/// All of it, in the order in which it comes to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Desired {
    /// Login name of the account.
    pub(crate) account: String,
    /// Its user id, present or chosen.
    pub(crate) uid: u32,
    /// Directories.
    pub(crate) dirs: Vec<Dir>,
    /// Files.
    pub(crate) files: Vec<File>,
    /// Directories in which no other file may be whose name starts like this.
    pub(crate) owned: Vec<(PathBuf, &'static str)>,
    /// Images.
    pub(crate) images: Vec<Image>,
    /// Podman secrets.
    pub(crate) secrets: Vec<Secret>,
    /// What must be mounted before the sentinel can be seen.
    pub(crate) mounts: Vec<Service>,
    /// The mark of the directory of the volumes.
    pub(crate) sentinel: Sentinel,
    /// Units.
    pub(crate) services: Vec<Service>,
}

/// A short name for some content: 16 hexadecimal digits that change when any part does.
///
/// It guards against oversight, not against an adversary; whoever could forge one owns the files.
pub(crate) fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = HighwayHasher::default();
    for part in parts {
        // The length keeps "ab","c" and "a","bc" apart.
        hasher.append(&(part.len() as u64).to_le_bytes());
        hasher.append(part);
    }
    format!("{:016x}", hasher.finalize64())
}

#[cfg(test)]
mod tests {
    use super::fingerprint;

    #[test]
    fn a_fingerprint_depends_on_where_parts_end() {
        let of = |parts: &[&'static str]| fingerprint(parts.iter().map(|p| p.as_bytes()));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_eq!(of(&["a"]).len(), 16);
    }
}
