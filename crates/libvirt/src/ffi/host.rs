//! Calls on what a domain needs of its host.

use super::*;

impl Conn {
    /// Is the network active?
    pub(crate) fn network(&self, name: &str) -> Answer<bool> {
        let name = c_string(name)?;
        // SAFETY: a NUL-terminated string that outlives the call.
        let found = Net::own(unsafe { sys::virNetworkLookupByName(self.raw(), name.as_ptr()) })?;
        // SAFETY: the network is valid.
        count(unsafe { sys::virNetworkIsActive(found.raw()) }).map(|yes| yes == 1)
    }

    /// Is the storage pool active?
    pub(crate) fn pool(&self, name: &str) -> Answer<bool> {
        let name = c_string(name)?;
        // SAFETY: a NUL-terminated string that outlives the call.
        let found =
            Pool::own(unsafe { sys::virStoragePoolLookupByName(self.raw(), name.as_ptr()) })?;
        // SAFETY: the pool is valid.
        count(unsafe { sys::virStoragePoolIsActive(found.raw()) }).map(|yes| yes == 1)
    }

    pub(crate) fn filter(&self, name: &str) -> Answer<()> {
        let name = c_string(name)?;
        // SAFETY: a NUL-terminated string that outlives the call.
        Filter::own(unsafe { sys::virNWFilterLookupByName(self.raw(), name.as_ptr()) }).map(drop)
    }

    /// What the secret says it is for; may be empty.
    pub(crate) fn secret(&self, uuid: &str) -> Answer<String> {
        let uuid = c_string(uuid)?;
        // SAFETY: a NUL-terminated string that outlives the call.
        let found =
            Secret::own(unsafe { sys::virSecretLookupByUUIDString(self.raw(), uuid.as_ptr()) })?;
        // SAFETY: the secret is valid and owns the string.
        let usage = unsafe { sys::virSecretGetUsageID(found.raw()) };
        if usage.is_null() {
            // A secret of no particular use has none.
            return Ok(String::new());
        }
        copy_string(usage)
    }

    /// Finds a secret by what it is for, of one of libvirt's kinds of use.
    pub(crate) fn secret_by_usage(&self, kind: u32, usage: &str) -> Answer<()> {
        let usage = c_string(usage)?;
        let kind = c_int::try_from(kind).map_err(|_| Fault::bad_value("no kind of secret"))?;
        // SAFETY: a NUL-terminated string that outlives the call.
        let found = unsafe { sys::virSecretLookupByUsage(self.raw(), kind, usage.as_ptr()) };
        Secret::own(found).map(drop)
    }
}
