//! Domains.

use std::sync::Arc;

use virt_sys as sys;

use crate::connect::Shared;
use crate::error::{Fault, Result};
use crate::{Connect, State, ffi};

/// A domain: what libvirt calls a VM. Clones share the handle.
///
/// The handle names the domain by UUID; it stays valid, and its calls fail with
/// [`crate::Kind::NotFound`], when the domain goes away.
#[derive(Clone, Debug)]
pub struct Domain {
    // Fields are dropped in this order: the connection must come after what it holds together.
    pub(crate) raw: ffi::Dom,
    name: String,
    uuid: String,
    connection: Arc<Shared>,
}

/// Which XML of a domain is asked for. The default is the live XML without secrets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XmlFlags {
    /// With passwords.
    pub secure: bool,
    /// The configuration for the next start instead of the running one.
    pub inactive: bool,
    /// Without what only this host understands. Includes passwords, too.
    pub migratable: bool,
}

/// What becomes of a domain's NVRAM file or TPM state when it is undefined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// libvirt refuses a domain with NVRAM, and treats TPM state as its definition says.
    #[default]
    Unsaid,
    /// It is left in place.
    Keep,
    /// It is removed.
    Remove,
}

/// How a domain is undefined. The default refuses a domain that has NVRAM, snapshots, checkpoints or
/// a saved memory image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Undefine {
    /// The NVRAM file.
    pub nvram: Keep,
    /// The TPM's state. Anything said here is refused by libvirt before 8.9.
    pub tpm: Keep,
    /// Forget checkpoints; their bitmaps stay in the images.
    pub forget_checkpoints: bool,
    /// Forget snapshots; their data stays.
    pub forget_snapshots: bool,
    /// Remove the saved memory image.
    pub drop_managed_save: bool,
}

impl Undefine {
    fn flags(self) -> u32 {
        let choose = |keep, kept, removed| match keep {
            Keep::Unsaid => 0,
            Keep::Keep => kept,
            Keep::Remove => removed,
        };
        let when = |yes, flag| if yes { flag } else { 0 };
        choose(
            self.nvram,
            sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM,
            sys::VIR_DOMAIN_UNDEFINE_NVRAM,
        ) | choose(
            self.tpm,
            sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM,
            sys::VIR_DOMAIN_UNDEFINE_TPM,
        ) | when(
            self.forget_checkpoints,
            sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA,
        ) | when(
            self.forget_snapshots,
            sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA,
        ) | when(
            self.drop_managed_save,
            sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE,
        )
    }
}

impl Domain {
    pub(crate) fn new(raw: ffi::Dom, connection: Arc<Shared>) -> std::result::Result<Self, Fault> {
        let (name, uuid) = (raw.name()?, raw.uuid()?);
        Ok(Self {
            raw,
            name,
            uuid,
            connection,
        })
    }

    /// Says what was being done to this domain.
    pub(crate) fn at<T>(
        &self,
        op: &'static str,
        answer: std::result::Result<T, Fault>,
    ) -> Result<T> {
        answer.map_err(|fault| fault.at(op, &self.name))
    }

    /// libvirt's name when the handle was made. Any bytes that libvirt allows: never a path, never
    /// a word of a command line.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// UUID in lower case with dashes.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The connection that it was found on.
    pub fn connection(&self) -> Connect {
        Connect::of(&self.connection)
    }

    /// Number of the running domain, none if it is off. Asks libvirt.
    pub fn id(&self) -> Result<Option<u32>> {
        self.at("ask the id of", self.raw.id())
    }

    /// What it is doing, and why.
    pub fn state(&self) -> Result<State> {
        self.at("ask the state of", self.raw.state())
            .map(State::from_raw)
    }

    /// Is there a process for it (running or paused)?
    pub fn is_active(&self) -> Result<bool> {
        self.at("ask the state of", self.raw.is_active())
    }

    /// Does its definition outlive its process?
    pub fn is_persistent(&self) -> Result<bool> {
        self.at("ask the state of", self.raw.is_persistent())
    }

    /// Is its memory saved in a file, so that the disks are not at rest although it is off?
    pub fn has_managed_save(&self) -> Result<bool> {
        self.at("ask for a saved image of", self.raw.has_managed_save())
    }

    /// Does it start with the host?
    pub fn autostart(&self) -> Result<bool> {
        self.at("ask the autostart of", self.raw.autostart())
    }

    /// Lets it start with the host, or not.
    pub fn set_autostart(&self, yes: bool) -> Result<()> {
        self.at("set the autostart of", self.raw.set_autostart(yes))
    }

    /// Its XML.
    pub fn xml(&self, flags: XmlFlags) -> Result<String> {
        let when = |yes, flag| if yes { flag } else { 0 };
        let flags = when(flags.secure, sys::VIR_DOMAIN_XML_SECURE)
            | when(flags.inactive, sys::VIR_DOMAIN_XML_INACTIVE)
            | when(flags.migratable, sys::VIR_DOMAIN_XML_MIGRATABLE);
        self.at("read the XML of", self.raw.xml(flags))
    }

    /// Starts it.
    pub fn create(&self) -> Result<()> {
        self.at("start", self.raw.start(0))
    }

    /// Starts it with its processors stopped.
    pub fn create_paused(&self) -> Result<()> {
        self.at("start", self.raw.start(sys::VIR_DOMAIN_START_PAUSED))
    }

    /// Ends its process at once, as if the power failed.
    pub fn destroy(&self) -> Result<()> {
        self.at("destroy", self.raw.destroy())
    }

    /// Asks the guest to shut down; returns before it has.
    pub fn shutdown(&self) -> Result<()> {
        self.at("shut down", self.raw.shutdown())
    }

    /// Presses its reset button.
    pub fn reset(&self) -> Result<()> {
        self.at("reset", self.raw.reset())
    }

    /// Stops its processors.
    pub fn suspend(&self) -> Result<()> {
        self.at("suspend", self.raw.suspend())
    }

    /// Lets its processors run again.
    pub fn resume(&self) -> Result<()> {
        self.at("resume", self.raw.resume())
    }

    /// Forgets its definition; a running domain becomes transient.
    pub fn undefine(&self, how: Undefine) -> Result<()> {
        self.at("undefine", self.raw.undefine(how.flags()))
    }
}
