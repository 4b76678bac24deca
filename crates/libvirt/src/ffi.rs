//! The only `unsafe` of this crate: pointers in, results out.
//!
//! Each wrapper owns exactly one reference that libvirt counts and gives it back on drop. libvirt
//! keeps the error of a failed call in thread-local storage until the thread's next call, so it is
//! read at once, in the function that made the call.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::{self, NonNull};
use std::sync::Once;

use virt_sys as sys;

use crate::error::Fault;

mod domain;
mod host;
pub(crate) mod records;

type Answer<T> = Result<T, Fault>;

/// Declares an owner of one counted reference to a libvirt object.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $free:path) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name(NonNull<$raw>);

        // SAFETY: libvirt documents its objects as usable from any thread: reference counts are
        // atomic, a connection serialises its wire by itself, and names and UUIDs never change.
        // The one field that changes without a lock, a domain's cached id, is written only by the
        // call that starts a domain and read only by `id`; `Dom::start` and `Dom::id` therefore
        // work on a private object of their own.
        unsafe impl Send for $name {}
        // SAFETY: as above; every method that takes `&self` only passes the pointer to libvirt.
        unsafe impl Sync for $name {}

        impl $name {
            fn own(raw: *mut $raw) -> Answer<Self> {
                NonNull::new(raw).map(Self).ok_or_else(last_fault)
            }

            fn raw(&self) -> *mut $raw {
                self.0.as_ptr()
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the pointer came from libvirt, this value owns one reference to it, and
                // nobody uses it after drop.
                unsafe { $free(self.raw()) };
            }
        }
    };
}

object!(
    /// A connection.
    Conn, sys::_virConnect, sys::virConnectClose
);
object!(
    /// A domain. It keeps its connection alive.
    Dom, sys::_virDomain, sys::virDomainFree
);
object!(
    /// A checkpoint. It keeps its domain alive.
    Ckpt, sys::_virDomainCheckpoint, sys::virDomainCheckpointFree
);
object!(
    /// A snapshot. It keeps its domain alive.
    Snap, sys::_virDomainSnapshot, sys::virDomainSnapshotFree
);
object!(Pool, sys::_virStoragePool, sys::virStoragePoolFree);
object!(Net, sys::_virNetwork, sys::virNetworkFree);
object!(Filter, sys::_virNWFilter, sys::virNWFilterFree);
object!(Secret, sys::_virSecret, sys::virSecretFree);
object!(Vol, sys::_virStorageVol, sys::virStorageVolFree);

impl Clone for Dom {
    fn clone(&self) -> Self {
        // SAFETY: the pointer is valid; the new reference belongs to the new value. The call fails
        // only for a pointer that is no domain.
        unsafe { sys::virDomainRef(self.raw()) };
        Self(self.0)
    }
}

/// Without an error function libvirt prints every error to stderr, which belongs to the job.
unsafe extern "C" fn silent(_: *mut c_void, _: sys::virErrorPtr) {}

fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `silent` has the signature libvirt asks for and lives for ever.
        unsafe { sys::virSetErrorFunc(ptr::null_mut(), Some(silent)) };
        // SAFETY: takes nothing and may be called from any thread.
        unsafe { sys::virInitialize() };
    });
}

/// The error that the thread's last call left.
fn last_fault() -> Fault {
    // SAFETY: returns null or a pointer to this thread's error, valid until its next call.
    let Some(error) = (unsafe { sys::virGetLastError().as_ref() }) else {
        return Fault {
            message: "libvirt gave no reason".into(),
            ..Fault::default()
        };
    };
    let message = if error.message.is_null() {
        "libvirt gave no reason".into()
    } else {
        // SAFETY: libvirt's messages end with NUL and live as long as the error.
        let text = unsafe { CStr::from_ptr(error.message) }.to_string_lossy();
        text.replace(char::is_control, " ")
    };
    Fault {
        code: error.code,
        origin: error.domain,
        errno: error.int1,
        message,
    }
}

fn c_string(text: &str) -> Answer<CString> {
    CString::new(text).map_err(|_| Fault::bad_value("the value has a NUL byte"))
}

/// Negative means failure in almost every call.
fn count(answer: c_int) -> Answer<u32> {
    u32::try_from(answer).map_err(|_| last_fault())
}

fn done(answer: c_int) -> Answer<()> {
    count(answer).map(drop)
}

/// Takes over a string that libvirt allocated for us.
fn take_string(text: *mut c_char) -> Answer<String> {
    if text.is_null() {
        return Err(last_fault());
    }
    // SAFETY: not null, NUL-terminated, ours until it is freed below.
    let copy = unsafe { CStr::from_ptr(text) }.to_str().map(str::to_owned);
    // SAFETY: libvirt allocates what it returns with malloc and leaves freeing to the caller.
    unsafe { libc::free(text.cast()) };
    copy.map_err(|_| Fault::bad_value("libvirt's answer is not UTF-8"))
}

/// Copies a string that belongs to libvirt.
fn copy_string(text: *const c_char) -> Answer<String> {
    if text.is_null() {
        return Err(last_fault());
    }
    // SAFETY: not null, NUL-terminated, alive as long as the object it was asked from, which the
    // caller holds.
    let copy = unsafe { CStr::from_ptr(text) }.to_str().map(str::to_owned);
    copy.map_err(|_| Fault::bad_value("libvirt's answer is not UTF-8"))
}

/// Takes over an array of objects: every element becomes an owner, the array itself is freed.
fn take_array<R, T>(array: *mut *mut R, len: u32, own: fn(*mut R) -> Answer<T>) -> Answer<Vec<T>> {
    if array.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: on success libvirt returns an array of exactly `len` pointers.
    let items = unsafe { std::slice::from_raw_parts(array, len as usize) };
    let owned: Vec<Answer<T>> = items.iter().map(|item| own(*item)).collect();
    // SAFETY: the array was allocated for us with malloc; its elements have owners by now.
    unsafe { libc::free(array.cast()) };
    owned.into_iter().collect()
}

impl Conn {
    pub(crate) fn open(uri: &str) -> Answer<Self> {
        init();
        let uri = c_string(uri)?;
        // SAFETY: a NUL-terminated string that outlives the call.
        Self::own(unsafe { sys::virConnectOpen(uri.as_ptr()) })
    }

    pub(crate) fn lib_version(&self) -> Answer<u64> {
        let mut version = 0;
        // SAFETY: `version` is a valid place for the answer.
        done(unsafe { sys::virConnectGetLibVersion(self.raw(), &mut version) })?;
        Ok(version)
    }

    pub(crate) fn hostname(&self) -> Answer<String> {
        // SAFETY: the connection is valid; the answer is ours.
        take_string(unsafe { sys::virConnectGetHostname(self.raw()) })
    }

    pub(crate) fn is_alive(&self) -> bool {
        // SAFETY: the connection is valid.
        unsafe { sys::virConnectIsAlive(self.raw()) == 1 }
    }

    pub(crate) fn domains(&self) -> Answer<Vec<Dom>> {
        let mut array = ptr::null_mut();
        // SAFETY: `array` is a valid place for the answer.
        let len = count(unsafe { sys::virConnectListAllDomains(self.raw(), &mut array, 0) })?;
        take_array(array, len, Dom::own)
    }

    pub(crate) fn by_name(&self, name: &str) -> Answer<Dom> {
        let name = c_string(name)?;
        // SAFETY: a NUL-terminated string that outlives the call.
        Dom::own(unsafe { sys::virDomainLookupByName(self.raw(), name.as_ptr()) })
    }

    pub(crate) fn by_uuid(&self, uuid: &str) -> Answer<Dom> {
        let uuid = c_string(uuid)?;
        // SAFETY: a NUL-terminated string that outlives the call.
        Dom::own(unsafe { sys::virDomainLookupByUUIDString(self.raw(), uuid.as_ptr()) })
    }

    pub(crate) fn define(&self, xml: &str) -> Answer<Dom> {
        let xml = c_string(xml)?;
        // SAFETY: a NUL-terminated string that outlives the call.
        Dom::own(unsafe { sys::virDomainDefineXMLFlags(self.raw(), xml.as_ptr(), 0) })
    }

    pub(crate) fn volume_path(&self, pool: &str, volume: &str) -> Answer<String> {
        let (pool, volume) = (c_string(pool)?, c_string(volume)?);
        // SAFETY: a NUL-terminated string that outlives the call.
        let pool =
            Pool::own(unsafe { sys::virStoragePoolLookupByName(self.raw(), pool.as_ptr()) })?;
        // SAFETY: as above.
        let volume =
            Vol::own(unsafe { sys::virStorageVolLookupByName(pool.raw(), volume.as_ptr()) })?;
        // SAFETY: the volume is valid; the answer is ours.
        take_string(unsafe { sys::virStorageVolGetPath(volume.raw()) })
    }
}
