//! Disks of a domain, snapshots and block jobs.

use virt_sys as sys;

use crate::error::{Fault, Result};
use crate::{Domain, ffi};

/// Sizes of a disk in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// As the guest sees it.
    pub capacity_bytes: u64,
    /// In use in the image.
    pub allocation_bytes: u64,
    /// Of the file or device that holds it.
    pub physical_bytes: u64,
}

/// A block job on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockJob {
    /// Is it an active commit, the kind that ends by a pivot?
    pub active_commit: bool,
    /// Progress, in units of its own.
    pub done: u64,
    /// Where the progress ends. Equal and not zero: an active commit can be pivoted, but QEMU may
    /// still refuse for a moment.
    pub end: u64,
}

/// A snapshot of a domain.
#[derive(Debug)]
pub struct Snapshot {
    raw: ffi::Snap,
    name: String,
    /// Dropped last: the connection must not close with the line above.
    _domain: Domain,
}

impl Snapshot {
    fn new(domain: &Domain, raw: ffi::Snap) -> std::result::Result<Self, Fault> {
        let name = raw.name()?;
        let _domain = domain.clone();
        Ok(Self { raw, name, _domain })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its XML.
    pub fn xml(&self) -> Result<String> {
        self.raw
            .xml()
            .map_err(|e| e.at("read the snapshot", &self.name))
    }
}

impl Domain {
    /// Sizes of a disk, by target (`vda`) or path.
    pub fn block_info(&self, disk: &str) -> Result<BlockInfo> {
        let [capacity_bytes, allocation_bytes, physical_bytes] =
            self.at("ask the size of a disk of", self.raw.block_info(disk))?;
        Ok(BlockInfo {
            capacity_bytes,
            allocation_bytes,
            physical_bytes,
        })
    }

    /// Has libvirt raise one event when writing passes `bytes` in an image of a disk: `vda`, or
    /// `vda[3]` for the image with that index, such as a scratch image.
    ///
    /// Whoever does not listen to events can poll the file's size instead.
    pub fn set_block_threshold(&self, disk: &str, bytes: u64) -> Result<()> {
        self.at(
            "set a block threshold of",
            self.raw.set_block_threshold(disk, bytes),
        )
    }

    /// Every snapshot.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let op = "list the snapshots of";
        let found = self.at(op, self.raw.snapshots())?;
        found
            .into_iter()
            .map(|raw| self.at(op, Snapshot::new(self, raw)))
            .collect()
    }

    /// Makes external snapshots of the disks that the XML names, all or none, without libvirt
    /// keeping a record of them: the domain continues on the overlays.
    pub fn snapshot_create_external(&self, xml: &str) -> Result<()> {
        let flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC;
        self.at("make a snapshot of", self.raw.snapshot_create(xml, flags))
            .map(drop)
    }

    /// Starts merging a disk's active image down into `base`. Ends by
    /// [`Domain::block_job_pivot`], never by itself.
    pub fn block_commit_active(&self, disk: &str, base: &str) -> Result<()> {
        let flags = sys::VIR_DOMAIN_BLOCK_COMMIT_ACTIVE;
        let answer = self.raw.block_commit(disk, Some(base), None, flags);
        self.at("commit a disk of", answer)
    }

    /// The block job of a disk, if there is one.
    pub fn block_job(&self, disk: &str) -> Result<Option<BlockJob>> {
        let found = self.at("ask the block job of", self.raw.block_job(disk))?;
        Ok(found.map(|(kind, done, end)| BlockJob {
            active_commit: u32::try_from(kind) == Ok(sys::VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT),
            done,
            end,
        }))
    }

    /// Ends an active commit by moving the domain onto the base. Fails while it is not ready.
    pub fn block_job_pivot(&self, disk: &str) -> Result<()> {
        let answer = self
            .raw
            .block_job_abort(disk, sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT);
        self.at("pivot a disk of", answer)
    }

    /// Gives up a block job; the domain stays on the image it writes to.
    pub fn block_job_abort(&self, disk: &str) -> Result<()> {
        self.at("abort the block job of", self.raw.block_job_abort(disk, 0))
    }
}
