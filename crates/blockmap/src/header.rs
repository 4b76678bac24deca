//! The first page of a map: what the map is of.

use std::path::Path;

use crate::key::{Key, KeyId, Root, digest};
use crate::tree::{Digest, MAX_SIZE, PAGE, Page};
use crate::{Error, blocks_of};

/// The format version that this program writes and reads.
pub const VERSION: u32 = 1;
/// Longest job name, in bytes: Bacula's limit.
pub const MAX_JOB: usize = 127;
/// Longest disk identity, in bytes.
pub const MAX_IDENTITY: usize = 1023;

const MAGIC: [u8; 8] = *b"lab-map\n";
/// Where the checksum lies: at the end of the page, in this and every later version, so that an
/// unknown version can be told from damage.
const CHECKSUM: usize = PAGE - 32;
/// The header is checked before the VM's key is known to fit, so its checksum has a public key.
const CHECKSUM_KEY: &[u8; 32] = b"lab-backup map header checksum 1";

/// What a map is of. The texts are the caller's; the map only keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The job that made the map: Bacula's unique job name, up to [`MAX_JOB`] bytes.
    pub job: String,
    /// The last job that read the whole disk; `job` itself if it did.
    pub full_read: String,
    /// How many jobs since then read only what a dirty bitmap named; 0 if `job` read everything.
    pub trusting: u32,
    /// Random id of the disk's part in that job, as the catalog keeps it in `st_ino`.
    pub part_id: u64,
    /// Bacula's sequence number of that part: 0 where the disk starts over.
    pub delta_seq: u32,
    /// Which disk this is, up to [`MAX_IDENTITY`] bytes: device and inode or volume, format, target.
    pub identity: String,
    /// Size of the disk in bytes.
    pub size: u64,
}

impl Header {
    /// The header of a disk that starts over in this job, which reads the whole of it.
    pub fn over(self) -> Self {
        Self {
            delta_seq: 0,
            ..self.whole()
        }
    }

    /// The header of a disk of which this job reads the whole.
    pub fn whole(self) -> Self {
        Self {
            trusting: 0,
            full_read: self.job.clone(),
            ..self
        }
    }

    /// Checks that the header can be stored.
    pub(crate) fn check(&self) -> Result<(), Error> {
        for (field, text, limit) in [
            ("job", &self.job, MAX_JOB),
            ("last full read", &self.full_read, MAX_JOB),
            ("disk identity", &self.identity, MAX_IDENTITY),
        ] {
            if text.is_empty() || text.len() > limit || text.contains('\0') {
                return Err(Error::BadField { field, limit });
            }
        }
        if self.size > MAX_SIZE {
            return Err(Error::TooLarge { size: self.size });
        }
        Ok(())
    }
}

/// A header with what sealing adds to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) header: Header,
    pub(crate) key_id: KeyId,
    pub(crate) nonzero: u64,
    pub(crate) top: Digest,
    pub(crate) root: Root,
}

impl Sealed {
    pub(crate) fn encode(&self) -> Page {
        let mut page = [0; PAGE];
        let header = &self.header;
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in page.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &header.delta_seq.to_le_bytes());
        put(16, &header.part_id.to_le_bytes());
        put(24, &self.key_id.0.to_le_bytes());
        put(32, &header.size.to_le_bytes());
        put(40, &self.nonzero.to_le_bytes());
        put(48, &self.top);
        put(80, &self.root.0);
        put(112, &header.trusting.to_le_bytes());
        put(128, header.job.as_bytes());
        put(256, header.full_read.as_bytes());
        put(384, header.identity.as_bytes());
        let sum = checksum(&page);
        if let Some(end) = page.last_chunk_mut() {
            *end = sum;
        }
        page
    }

    pub(crate) fn decode(path: &Path, page: &Page) -> Result<Self, Error> {
        let damaged = |what: &str| Error::damaged(path, what);
        if page.iter().all(|byte| *byte == 0) {
            return Err(damaged("it was never sealed"));
        }
        if page.first_chunk() != Some(&MAGIC) {
            return Err(damaged("it does not begin as a block map"));
        }
        if page.last_chunk() != Some(&checksum(page)) {
            return Err(damaged("the header does not match its checksum"));
        }
        let version = u32::from_le_bytes(field(page, 8));
        if version != VERSION {
            return Err(Error::Version {
                path: path.to_owned(),
                version,
            });
        }
        let text = |at: usize, limit: usize| {
            let bytes: Vec<u8> = page.iter().skip(at).take(limit + 1).copied().collect();
            let end = bytes.iter().position(|byte| *byte == 0);
            end.and_then(|end| String::from_utf8(bytes.get(..end)?.to_vec()).ok())
                .ok_or_else(|| damaged("a text in the header is malformed"))
        };
        let sealed = Self {
            header: Header {
                job: text(128, MAX_JOB)?,
                full_read: text(256, MAX_JOB)?,
                trusting: u32::from_le_bytes(field(page, 112)),
                part_id: u64::from_le_bytes(field(page, 16)),
                delta_seq: u32::from_le_bytes(field(page, 12)),
                identity: text(384, MAX_IDENTITY)?,
                size: u64::from_le_bytes(field(page, 32)),
            },
            key_id: KeyId(u64::from_le_bytes(field(page, 24))),
            nonzero: u64::from_le_bytes(field(page, 40)),
            top: field(page, 48),
            root: Root(field(page, 80)),
        };
        let header = &sealed.header;
        if header.check().is_err() || sealed.nonzero > blocks_of(header.size) {
            return Err(damaged("the header contradicts itself"));
        }
        Ok(sealed)
    }
}

fn field<const N: usize>(page: &Page, at: usize) -> [u8; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(page.iter().skip(at)) {
        *to = *from;
    }
    field
}

fn checksum(page: &Page) -> [u8; 32] {
    let covered = page.get(..CHECKSUM).unwrap_or_default();
    digest(Key::from_bytes(*CHECKSUM_KEY).lanes(), covered)
}
