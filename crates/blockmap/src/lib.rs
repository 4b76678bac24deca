//! The block map: fingerprints of a disk's content.
//!
//! For every 4 KiB block of a disk a map keeps 8 bytes, a keyed fingerprint of the content. One
//! structure serves three uses: a candidate block whose fingerprint did not change is not sent
//! again, a chain whose dirty bitmap was lost heals by comparing the disk with the map, and the
//! map's root proves that a restored image is the one that was recorded.
//!
//! ```text
//! buffer --fingerprints()--> [u64] --runs(base)--> what to send
//!                              |
//!                              +--MapWriter::set()--> sealed file --Map::open()--> next job's base
//!                                                          |
//!                                                          +--root()--> manifest
//! ```
//!
//! A zero block has fingerprint 0 and costs nothing: pages of zero blocks are holes in the file, and
//! no operation visits them one by one. Every other page is covered by a digest, every digest by a
//! digest above it, and the topmost by the root, so a file either reads back exactly or is
//! [`Kind::Damaged`]. `docs/blockmap.md` describes the file byte by byte.
//!
//! The crate knows neither NBD nor libvirt nor Bacula; names in a header are opaque to it.

mod error;
mod fingerprint;
mod header;
mod image;
mod key;
mod map;
mod sparse;
mod tree;
mod writer;

pub use error::{Error, Kind};
pub use fingerprint::{Run, Runs, fingerprint, fingerprints, runs};
pub use header::{Header, MAX_IDENTITY, MAX_JOB, VERSION};
pub use image::{compare_image, root_of};
pub use key::{Key, KeyId, Root};
pub use map::Map;
pub use tree::MAX_SIZE;
pub use writer::{MapWriter, sweep};

/// Bytes of a disk that one fingerprint stands for; only the last block of a disk may be shorter.
pub const BLOCK: usize = 4096;

/// How many blocks a disk of `size` bytes has, the short last one included.
pub const fn blocks_of(size: u64) -> u64 {
    size.div_ceil(BLOCK as u64)
}
