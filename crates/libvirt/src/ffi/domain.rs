//! Calls on domains, checkpoints and snapshots.

use super::*;

/// Calls of the form `fn(domain) -> int`.
type Plain = unsafe extern "C" fn(sys::virDomainPtr) -> c_int;
/// Calls of the form `fn(domain, flags) -> int`.
type Flagged = unsafe extern "C" fn(sys::virDomainPtr, c_uint) -> c_int;

impl Dom {
    fn plain(&self, call: Plain) -> Answer<u32> {
        // SAFETY: `call` is one of libvirt's functions that take only a domain.
        count(unsafe { call(self.raw()) })
    }

    fn flagged(&self, call: Flagged, flags: u32) -> Answer<u32> {
        // SAFETY: `call` is one of libvirt's functions that take only a domain and flags.
        count(unsafe { call(self.raw(), flags) })
    }

    /// A second object for the same domain, shared with nobody.
    fn private(&self) -> Answer<Self> {
        let uuid = c_string(&self.uuid()?)?;
        // SAFETY: the domain keeps its connection alive; the pointer is only borrowed.
        let conn = unsafe { sys::virDomainGetConnect(self.raw()) };
        // SAFETY: a NUL-terminated string that outlives the call, and a valid connection.
        Self::own(unsafe { sys::virDomainLookupByUUIDString(conn, uuid.as_ptr()) })
    }

    pub(crate) fn name(&self) -> Answer<String> {
        // SAFETY: the domain is valid and owns the string.
        copy_string(unsafe { sys::virDomainGetName(self.raw()) })
    }

    pub(crate) fn uuid(&self) -> Answer<String> {
        let mut text = [0 as c_char; sys::VIR_UUID_STRING_BUFLEN as usize];
        // SAFETY: the buffer has the length that libvirt asks for.
        done(unsafe { sys::virDomainGetUUIDString(self.raw(), text.as_mut_ptr()) })?;
        copy_string(text.as_ptr())
    }

    pub(crate) fn id(&self) -> Answer<Option<u32>> {
        let fresh = self.private()?;
        // SAFETY: the domain is valid and nobody else uses this object.
        let id = unsafe { sys::virDomainGetID(fresh.raw()) };
        Ok((id != c_uint::MAX).then_some(id))
    }

    pub(crate) fn state(&self) -> Answer<(i32, i32)> {
        let (mut state, mut reason) = (0, 0);
        // SAFETY: both are valid places for the answer.
        done(unsafe { sys::virDomainGetState(self.raw(), &mut state, &mut reason, 0) })?;
        Ok((state, reason))
    }

    pub(crate) fn is_active(&self) -> Answer<bool> {
        self.plain(sys::virDomainIsActive).map(|yes| yes == 1)
    }

    pub(crate) fn is_persistent(&self) -> Answer<bool> {
        self.plain(sys::virDomainIsPersistent).map(|yes| yes == 1)
    }

    pub(crate) fn has_managed_save(&self) -> Answer<bool> {
        self.flagged(sys::virDomainHasManagedSaveImage, 0)
            .map(|yes| yes == 1)
    }

    pub(crate) fn autostart(&self) -> Answer<bool> {
        let mut yes = 0;
        // SAFETY: `yes` is a valid place for the answer.
        done(unsafe { sys::virDomainGetAutostart(self.raw(), &mut yes) })?;
        Ok(yes == 1)
    }

    pub(crate) fn set_autostart(&self, yes: bool) -> Answer<()> {
        // SAFETY: the domain is valid.
        done(unsafe { sys::virDomainSetAutostart(self.raw(), yes.into()) })
    }

    pub(crate) fn xml(&self, flags: u32) -> Answer<String> {
        // SAFETY: the domain is valid; the answer is ours.
        take_string(unsafe { sys::virDomainGetXMLDesc(self.raw(), flags) })
    }

    pub(crate) fn start(&self, flags: u32) -> Answer<()> {
        // The call writes the id into the object it is given.
        self.private()?
            .flagged(sys::virDomainCreateWithFlags, flags)
            .map(drop)
    }

    pub(crate) fn destroy(&self) -> Answer<()> {
        self.flagged(sys::virDomainDestroyFlags, 0).map(drop)
    }

    pub(crate) fn undefine(&self, flags: u32) -> Answer<()> {
        self.flagged(sys::virDomainUndefineFlags, flags).map(drop)
    }

    pub(crate) fn suspend(&self) -> Answer<()> {
        self.plain(sys::virDomainSuspend).map(drop)
    }

    pub(crate) fn resume(&self) -> Answer<()> {
        self.plain(sys::virDomainResume).map(drop)
    }

    pub(crate) fn reset(&self) -> Answer<()> {
        self.flagged(sys::virDomainReset, 0).map(drop)
    }

    pub(crate) fn shutdown(&self) -> Answer<()> {
        self.flagged(sys::virDomainShutdownFlags, 0).map(drop)
    }

    pub(crate) fn abort_job(&self) -> Answer<()> {
        self.plain(sys::virDomainAbortJob).map(drop)
    }

    /// Capacity, allocation and physical size in bytes.
    pub(crate) fn block_info(&self, disk: &str) -> Answer<[u64; 3]> {
        let disk = c_string(disk)?;
        let mut info = sys::_virDomainBlockInfo {
            capacity: 0,
            allocation: 0,
            physical: 0,
        };
        // SAFETY: `info` is a valid place for the answer; the string outlives the call.
        done(unsafe { sys::virDomainGetBlockInfo(self.raw(), disk.as_ptr(), &mut info, 0) })?;
        Ok([info.capacity, info.allocation, info.physical])
    }

    pub(crate) fn freeze(&self, mountpoints: &[&str]) -> Answer<u32> {
        self.freeze_or_thaw(sys::virDomainFSFreeze, mountpoints)
    }

    pub(crate) fn thaw(&self) -> Answer<u32> {
        self.freeze_or_thaw(sys::virDomainFSThaw, &[])
    }

    fn freeze_or_thaw(
        &self,
        call: unsafe extern "C" fn(sys::virDomainPtr, *mut *const c_char, c_uint, c_uint) -> c_int,
        mountpoints: &[&str],
    ) -> Answer<u32> {
        let texts: Vec<CString> = mountpoints
            .iter()
            .map(|m| c_string(m))
            .collect::<Answer<_>>()?;
        let mut pointers: Vec<*const c_char> = texts.iter().map(|t| t.as_ptr()).collect();
        let len = c_uint::try_from(pointers.len())
            .map_err(|_| Fault::bad_value("there are too many mount points"))?;
        let array = if pointers.is_empty() {
            ptr::null_mut()
        } else {
            pointers.as_mut_ptr()
        };
        // SAFETY: `array` is null with length 0 or holds `len` NUL-terminated strings, all of
        // which outlive the call.
        count(unsafe { call(self.raw(), array, len, 0) })
    }

    pub(crate) fn set_agent_timeout(&self, seconds: i32) -> Answer<()> {
        // SAFETY: the domain is valid.
        done(unsafe { sys::virDomainAgentSetResponseTimeout(self.raw(), seconds, 0) })
    }

    pub(crate) fn agent_command(&self, json: &str, seconds: i32) -> Answer<String> {
        let json = c_string(json)?;
        // SAFETY: the string outlives the call; the answer is ours.
        take_string(unsafe {
            sys::virDomainQemuAgentCommand(self.raw(), json.as_ptr(), seconds, 0)
        })
    }

    pub(crate) fn backup_begin(
        &self,
        backup: &str,
        checkpoint: Option<&str>,
        flags: u32,
    ) -> Answer<()> {
        let backup = c_string(backup)?;
        let checkpoint = checkpoint.map(c_string).transpose()?;
        let checkpoint = checkpoint.as_ref().map_or(ptr::null(), |xml| xml.as_ptr());
        // SAFETY: NUL-terminated strings that outlive the call, or null for no checkpoint.
        done(unsafe { sys::virDomainBackupBegin(self.raw(), backup.as_ptr(), checkpoint, flags) })
    }

    pub(crate) fn backup_xml(&self) -> Answer<String> {
        // SAFETY: the domain is valid; the answer is ours.
        take_string(unsafe { sys::virDomainBackupGetXMLDesc(self.raw(), 0) })
    }

    pub(crate) fn set_block_threshold(&self, disk: &str, bytes: u64) -> Answer<()> {
        let disk = c_string(disk)?;
        // SAFETY: the string outlives the call.
        done(unsafe { sys::virDomainSetBlockThreshold(self.raw(), disk.as_ptr(), bytes, 0) })
    }

    pub(crate) fn checkpoint_create(&self, xml: &str, flags: u32) -> Answer<Ckpt> {
        let xml = c_string(xml)?;
        // SAFETY: the string outlives the call.
        Ckpt::own(unsafe { sys::virDomainCheckpointCreateXML(self.raw(), xml.as_ptr(), flags) })
    }

    pub(crate) fn checkpoint(&self, name: &str) -> Answer<Ckpt> {
        let name = c_string(name)?;
        // SAFETY: the string outlives the call.
        Ckpt::own(unsafe { sys::virDomainCheckpointLookupByName(self.raw(), name.as_ptr(), 0) })
    }

    pub(crate) fn checkpoints(&self, flags: u32) -> Answer<Vec<Ckpt>> {
        let mut array = ptr::null_mut();
        // SAFETY: `array` is a valid place for the answer.
        let len =
            count(unsafe { sys::virDomainListAllCheckpoints(self.raw(), &mut array, flags) })?;
        take_array(array, len, Ckpt::own)
    }

    pub(crate) fn snapshot_create(&self, xml: &str, flags: u32) -> Answer<Snap> {
        let xml = c_string(xml)?;
        // SAFETY: the string outlives the call.
        Snap::own(unsafe { sys::virDomainSnapshotCreateXML(self.raw(), xml.as_ptr(), flags) })
    }

    pub(crate) fn snapshots(&self) -> Answer<Vec<Snap>> {
        let mut array = ptr::null_mut();
        // SAFETY: `array` is a valid place for the answer.
        let len = count(unsafe { sys::virDomainListAllSnapshots(self.raw(), &mut array, 0) })?;
        take_array(array, len, Snap::own)
    }

    pub(crate) fn block_commit(
        &self,
        disk: &str,
        base: Option<&str>,
        top: Option<&str>,
        flags: u32,
    ) -> Answer<()> {
        let disk = c_string(disk)?;
        let (base, top) = (
            base.map(c_string).transpose()?,
            top.map(c_string).transpose()?,
        );
        let base = base.as_ref().map_or(ptr::null(), |path| path.as_ptr());
        let top = top.as_ref().map_or(ptr::null(), |path| path.as_ptr());
        // SAFETY: NUL-terminated strings that outlive the call, or null for the chain's ends.
        done(unsafe { sys::virDomainBlockCommit(self.raw(), disk.as_ptr(), base, top, 0, flags) })
    }

    pub(crate) fn block_job_abort(&self, disk: &str, flags: u32) -> Answer<()> {
        let disk = c_string(disk)?;
        // SAFETY: the string outlives the call.
        done(unsafe { sys::virDomainBlockJobAbort(self.raw(), disk.as_ptr(), flags) })
    }

    /// Type, position and end of a block job, if there is one.
    pub(crate) fn block_job(&self, disk: &str) -> Answer<Option<(i32, u64, u64)>> {
        let disk = c_string(disk)?;
        let mut info = sys::_virDomainBlockJobInfo {
            type_: 0,
            bandwidth: 0,
            cur: 0,
            end: 0,
        };
        // SAFETY: `info` is a valid place for the answer; the string outlives the call.
        let found = count(unsafe {
            sys::virDomainGetBlockJobInfo(self.raw(), disk.as_ptr(), &mut info, 0)
        })?;
        Ok((found > 0).then_some((info.type_, info.cur, info.end)))
    }
}

impl Ckpt {
    pub(crate) fn name(&self) -> Answer<String> {
        // SAFETY: the checkpoint is valid and owns the string.
        copy_string(unsafe { sys::virDomainCheckpointGetName(self.raw()) })
    }

    pub(crate) fn xml(&self, flags: u32) -> Answer<String> {
        // SAFETY: the checkpoint is valid; the answer is ours.
        take_string(unsafe { sys::virDomainCheckpointGetXMLDesc(self.raw(), flags) })
    }

    pub(crate) fn delete(&self, flags: u32) -> Answer<()> {
        // SAFETY: the checkpoint is valid; the object stays ours to free.
        done(unsafe { sys::virDomainCheckpointDelete(self.raw(), flags) })
    }
}

impl Snap {
    pub(crate) fn name(&self) -> Answer<String> {
        // SAFETY: the snapshot is valid and owns the string.
        copy_string(unsafe { sys::virDomainSnapshotGetName(self.raw()) })
    }

    pub(crate) fn xml(&self) -> Answer<String> {
        // SAFETY: the snapshot is valid; the answer is ours.
        take_string(unsafe { sys::virDomainSnapshotGetXMLDesc(self.raw(), 0) })
    }
}
