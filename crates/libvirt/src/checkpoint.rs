//! Checkpoints: libvirt's names for sets of dirty bitmaps.

use virt_sys as sys;

use crate::connect::none_if_not_found;
use crate::error::{Fault, Result};
use crate::{Domain, ffi};

/// A checkpoint of a domain.
#[derive(Debug)]
pub struct Checkpoint {
    raw: ffi::Ckpt,
    name: String,
    /// Dropped last: the connection must not close with the line above.
    _domain: Domain,
}

impl Checkpoint {
    fn new(domain: &Domain, raw: ffi::Ckpt) -> std::result::Result<Self, Fault> {
        let name = raw.name()?;
        let _domain = domain.clone();
        Ok(Self { raw, name, _domain })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its XML without the copy of the domain's, enough to redefine it. See
    /// [`crate::xml::CheckpointView`].
    pub fn xml(&self) -> Result<String> {
        let answer = self.raw.xml(sys::VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN);
        answer.map_err(|e| e.at("read the checkpoint", &self.name))
    }

    /// Deletes it and its bitmaps; what they recorded goes to its parent. The domain must run.
    pub fn delete(&self) -> Result<()> {
        self.raw
            .delete(0)
            .map_err(|e| e.at("delete the checkpoint", &self.name))
    }

    /// Makes libvirt forget it; bitmaps stay in the images. The only way when they are broken.
    pub fn forget(&self) -> Result<()> {
        let answer = self
            .raw
            .delete(sys::VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY);
        answer.map_err(|e| e.at("forget the checkpoint", &self.name))
    }
}

impl Domain {
    /// Every checkpoint, parents before children.
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>> {
        let op = "list the checkpoints of";
        let found = self.at(
            op,
            self.raw
                .checkpoints(sys::VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL),
        )?;
        found
            .into_iter()
            .map(|raw| self.at(op, Checkpoint::new(self, raw)))
            .collect()
    }

    /// The checkpoint of a name, if there is one.
    pub fn checkpoint(&self, name: &str) -> Result<Option<Checkpoint>> {
        let found = self
            .raw
            .checkpoint(name)
            .and_then(|raw| Checkpoint::new(self, raw));
        none_if_not_found(found.map_err(|e| e.at("find the checkpoint", name)))
    }

    /// Makes a checkpoint now, with no backup. [`crate::Kind::Exists`] if libvirt has one of that
    /// name; a bitmap of that name that libvirt does not know fails as [`crate::Kind::Other`].
    pub fn checkpoint_create(&self, xml: &str) -> Result<Checkpoint> {
        let made = self
            .raw
            .checkpoint_create(xml, 0)
            .and_then(|raw| Checkpoint::new(self, raw));
        made.map_err(|e| e.at_new("make a checkpoint of", self.name()))
    }

    /// Tells libvirt again of a checkpoint whose bitmaps are in the images, and has it check them:
    /// [`crate::Kind::CheckpointBroken`] if one is missing or inconsistent. The domain must run.
    pub fn checkpoint_redefine(&self, xml: &str) -> Result<Checkpoint> {
        let flags = sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
            | sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE;
        let made = self
            .raw
            .checkpoint_create(xml, flags)
            .and_then(|raw| Checkpoint::new(self, raw));
        self.at("redefine a checkpoint of", made)
    }
}
