//! Why a map cannot be used, and the few cases that callers tell apart.

use std::io;
use std::path::{Path, PathBuf};

use crate::key::KeyId;

/// What a caller decides by. See [`Error::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// There is no such map. The disk starts over.
    Missing,
    /// The file is not what was sealed. The same as [`Kind::Missing`], but worth a line in the log.
    Damaged,
    /// The map is intact and of no use here: other job, other key, other format version. The disk
    /// starts over.
    Foreign,
    /// The disk shrank since the base. The disk starts over.
    Shrunk,
    /// The image read is not as long as the disk that was recorded. It cannot be the same.
    ImageSize,
    /// The system refused: no space, no permission, a read error.
    Io,
    /// The caller asked for something that cannot be: a bug or a wrong argument.
    Usage,
}

/// What went wrong with a map.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no file of that name.
    #[error("there is no block map {}", path.display())]
    Missing {
        /// The map.
        path: PathBuf,
    },
    /// A checksum, a length or a field is wrong.
    #[error("block map {} is damaged: {what}", path.display())]
    Damaged {
        /// The map.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The file is sound, but of a format that this program does not read.
    #[error("block map {} has format version {version}, not {}", path.display(), crate::VERSION)]
    Version {
        /// The map.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The map was made by another job than the one asked for.
    #[error("block map {} is of job {found:?}, not {wanted:?}", path.display())]
    WrongJob {
        /// The map.
        path: PathBuf,
        /// Job asked for.
        wanted: String,
        /// Job that made it.
        found: String,
    },
    /// The map was made with another key.
    #[error("block map {} was made with key {found}, not {wanted}", path.display())]
    WrongKey {
        /// The map.
        path: PathBuf,
        /// Id of the key at hand.
        wanted: KeyId,
        /// Id of the key it was made with.
        found: KeyId,
    },
    /// A clone cannot be smaller than its base.
    #[error("the disk of block map {} shrank from {base_size} to {size} bytes", path.display())]
    Shrunk {
        /// The base.
        path: PathBuf,
        /// Size of the disk in the base, in bytes.
        base_size: u64,
        /// Size of the disk now, in bytes.
        size: u64,
    },
    /// The disk is larger than the format can describe.
    #[error(
        "a disk of {size} bytes is over the limit of {} bytes",
        crate::MAX_SIZE
    )]
    TooLarge {
        /// Size of the disk in bytes.
        size: u64,
    },
    /// A header text is empty, too long or contains a NUL.
    #[error("the {field} of a block map must have 1 to {limit} bytes and no NUL")]
    BadField {
        /// Which text.
        field: &'static str,
        /// Longest that fits, in bytes.
        limit: usize,
    },
    /// Blocks beyond the end of the disk were named.
    #[error("blocks {first}+{count} lie beyond the {blocks} blocks of block map {}", path.display())]
    OutOfRange {
        /// The map.
        path: PathBuf,
        /// First block named.
        first: u64,
        /// How many.
        count: u64,
        /// Blocks of the disk.
        blocks: u64,
    },
    /// The disk grew, and the block that used to be its short last one was not fingerprinted anew.
    ///
    /// Its fingerprint covers fewer bytes than the block now has; a root over it would be wrong.
    #[error("block {block} of block map {} was the short end of a smaller disk and was not set", path.display())]
    StaleTail {
        /// The map being written.
        path: PathBuf,
        /// The block.
        block: u64,
    },
    /// The image has not the length of the disk.
    #[error("the image has {found} bytes, not {wanted}")]
    ImageSize {
        /// Size of the disk in bytes.
        wanted: u64,
        /// Length of the image in bytes.
        found: u64,
    },
    /// A key or root is not written as 64 hexadecimal digits.
    #[error("a {what} is written as 64 hexadecimal digits")]
    BadHex {
        /// What was to be read: key or root.
        what: &'static str,
    },
    /// The system gave no random bytes.
    #[error("no random bytes for a key")]
    Random(#[source] getrandom::Error),
    /// The image could not be read.
    #[error("cannot read the image at byte {offset}")]
    Image {
        /// Position in the image.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The map could not be read or written.
    #[error("cannot {action} block map {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// The case that this error belongs to.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Missing { .. } => Kind::Missing,
            Error::Damaged { .. } => Kind::Damaged,
            Error::Version { .. } | Error::WrongJob { .. } | Error::WrongKey { .. } => {
                Kind::Foreign
            }
            Error::Shrunk { .. } => Kind::Shrunk,
            Error::ImageSize { .. } => Kind::ImageSize,
            Error::Io { .. } | Error::Image { .. } | Error::Random(_) => Kind::Io,
            Error::TooLarge { .. }
            | Error::BadField { .. }
            | Error::OutOfRange { .. }
            | Error::StaleTail { .. }
            | Error::BadHex { .. } => Kind::Usage,
        }
    }

    pub(crate) fn io<'a, E: Into<io::Error>>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(E) -> Error + 'a {
        move |source| Error::Io {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Error {
        Error::Damaged {
            path: path.to_owned(),
            what: what.into(),
        }
    }
}
