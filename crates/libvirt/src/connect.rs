//! Connections.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Fault, Kind, Result};
use crate::{Domain, deadline, ffi};

/// A version of libvirt. Ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub release: u32,
}

impl Version {
    /// A version from its numbers.
    pub const fn new(major: u32, minor: u32, release: u32) -> Self {
        Self {
            major,
            minor,
            release,
        }
    }

    fn from_packed(packed: u64) -> Self {
        let part = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Self::new(
            part(packed / 1_000_000),
            part(packed / 1000 % 1000),
            part(packed % 1000),
        )
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.release)
    }
}

/// How long the last handle waits for the daemon when it closes a connection.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// A connection to a hypervisor. Clones share it; it closes with the last clone or the last handle
/// that came from it. Closing asks the daemon; a daemon that does not answer is given up after 2
/// seconds.
#[derive(Clone, Debug)]
pub struct Connect {
    shared: Arc<Shared>,
}

/// What every handle of a connection holds, so that its close happens here and nowhere else.
#[derive(Debug)]
pub(crate) struct Shared {
    raw: Option<ffi::Conn>,
    uri: String,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let raw = self.raw.take();
        let _ = deadline::run(CLOSE_LIMIT, "close", &self.uri, move || {
            drop(raw);
            Ok(())
        });
    }
}

impl Connect {
    /// Opens a connection with all rights, such as `qemu:///system`. May block: see
    /// [`crate::deadline`].
    pub fn open(uri: &str) -> Result<Self> {
        let raw = ffi::Conn::open(uri).map_err(|e| e.at("connect to", uri))?;
        let shared = Shared {
            raw: Some(raw),
            uri: uri.into(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The connection that a handle came from.
    pub(crate) fn of(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
        }
    }

    pub(crate) fn raw(&self) -> &ffi::Conn {
        self.shared.raw.as_ref().expect("only drop takes it")
    }

    fn domain(&self, raw: ffi::Dom) -> std::result::Result<Domain, Fault> {
        Domain::new(raw, Arc::clone(&self.shared))
    }

    /// A second connection to the same place.
    pub fn reopen(&self) -> Result<Self> {
        Self::open(self.uri())
    }

    /// The URI it was opened with.
    pub fn uri(&self) -> &str {
        &self.shared.uri
    }

    /// Version of libvirt at the other end. Features are gated on this one: the local library may
    /// be newer than the daemon.
    pub fn lib_version(&self) -> Result<Version> {
        let packed = self
            .raw()
            .lib_version()
            .map_err(|e| e.at("ask the version of", self.uri()))?;
        Ok(Version::from_packed(packed))
    }

    /// Name of the host that runs the domains.
    pub fn hostname(&self) -> Result<String> {
        self.raw()
            .hostname()
            .map_err(|e| e.at("ask the host name of", self.uri()))
    }

    /// Is the connection still open, as far as this end knows? Asks nobody.
    pub fn is_alive(&self) -> bool {
        self.raw().is_alive()
    }

    /// Every domain, running or only defined, in no particular order.
    pub fn domains(&self) -> Result<Vec<Domain>> {
        let at = |e: Fault| e.at("list the domains of", self.uri());
        self.raw()
            .domains()
            .map_err(at)?
            .into_iter()
            .map(|raw| self.domain(raw).map_err(at))
            .collect()
    }

    /// The domain of a name. [`Kind::NotFound`] if there is none.
    pub fn by_name(&self, name: &str) -> Result<Domain> {
        self.raw()
            .by_name(name)
            .and_then(|raw| self.domain(raw))
            .map_err(|e| e.at("find the domain", name))
    }

    /// The domain of a UUID. [`Kind::NotFound`] if there is none.
    pub fn by_uuid(&self, uuid: &str) -> Result<Domain> {
        self.raw()
            .by_uuid(uuid)
            .and_then(|raw| self.domain(raw))
            .map_err(|e| e.at("find the domain", uuid))
    }

    /// Makes a domain persistent under the name and UUID in its XML.
    ///
    /// libvirt silently replaces the configuration of a domain, even a running one, that has both
    /// the same name and the same UUID: look both up first. [`Kind::Exists`] if only one of the
    /// two is taken.
    pub fn define(&self, xml: &str) -> Result<Domain> {
        let made = self.raw().define(xml).and_then(|raw| self.domain(raw));
        made.map_err(|e| e.at_new("define a domain on", self.uri()))
    }

    /// Where a volume of a storage pool is. The pool must be active.
    pub fn volume_path(&self, pool: &str, volume: &str) -> Result<String> {
        self.raw()
            .volume_path(pool, volume)
            .map_err(|e| e.at("find the volume", &format!("{pool}/{volume}")))
    }
}

/// [`Error`]s of this kind mean "there is none" rather than "it failed".
pub(crate) fn none_if_not_found<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Error {
            kind: Kind::NotFound,
            ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_unpacked_and_ordered() {
        let version = Version::from_packed(11_003_002);
        assert_eq!(version.to_string(), "11.3.2");
        assert!(version < Version::new(11, 10, 0));
        assert!(version > Version::new(9, 99, 99));
    }
}
