//! What a domain needs of its host besides files.

use virt_sys as sys;

use crate::Connect;
use crate::connect::none_if_not_found;
use crate::error::{Fault, Result};
use crate::xml::SecretRef;

/// Is there a network or storage pool of a name, and does it work?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is there and active.
    Active,
    /// It is defined and has to be started.
    Inactive,
    /// There is none.
    Missing,
}

impl Presence {
    fn of(found: Option<bool>) -> Self {
        match found {
            Some(true) => Self::Active,
            Some(false) => Self::Inactive,
            None => Self::Missing,
        }
    }
}

/// The kinds of use a secret can have, as XML and C call them.
const USES: [(&str, u32); 5] = [
    ("volume", sys::VIR_SECRET_USAGE_TYPE_VOLUME),
    ("ceph", sys::VIR_SECRET_USAGE_TYPE_CEPH),
    ("iscsi", sys::VIR_SECRET_USAGE_TYPE_ISCSI),
    ("tls", sys::VIR_SECRET_USAGE_TYPE_TLS),
    ("vtpm", sys::VIR_SECRET_USAGE_TYPE_VTPM),
];

impl Connect {
    /// Asks for a virtual network.
    pub fn network(&self, name: &str) -> Result<Presence> {
        let found = self.raw().network(name);
        self.presence("find the network", name, found)
    }

    /// Asks for a storage pool.
    pub fn pool(&self, name: &str) -> Result<Presence> {
        let found = self.raw().pool(name);
        self.presence("find the storage pool", name, found)
    }

    /// Is there a network filter of this name?
    pub fn has_filter(&self, name: &str) -> Result<bool> {
        let found = self.raw().filter(name);
        let found = found.map_err(|e| e.at("find the network filter", name));
        none_if_not_found(found).map(|found| found.is_some())
    }

    /// Is there this secret? Its value is never asked for.
    pub fn has_secret(&self, secret: &SecretRef) -> Result<bool> {
        if let Some(uuid) = &secret.uuid {
            return self.secret_usage(uuid).map(|found| found.is_some());
        }
        let Some(usage) = &secret.usage else {
            return Ok(false);
        };
        let fits = |kind: &str| secret.kind.as_deref().is_none_or(|wanted| wanted == kind);
        // A passphrase may be called that instead of by its use.
        let known = USES.iter().any(|(kind, _)| fits(kind));
        for (_, number) in USES.iter().filter(|(kind, _)| !known || fits(kind)) {
            let found = self.raw().secret_by_usage(*number, usage);
            let found = found.map_err(|e| e.at("find the secret", usage));
            if none_if_not_found(found)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the secret of a UUID says it is for, or nothing if there is no such secret.
    pub fn secret_usage(&self, uuid: &str) -> Result<Option<String>> {
        let found = self.raw().secret(uuid);
        none_if_not_found(found.map_err(|e| e.at("find the secret", uuid)))
    }

    fn presence(
        &self,
        op: &'static str,
        name: &str,
        found: std::result::Result<bool, Fault>,
    ) -> Result<Presence> {
        none_if_not_found(found.map_err(|e| e.at(op, name))).map(Presence::of)
    }
}
