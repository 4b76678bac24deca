//! Calls that answer with records: job statistics and file systems.

use super::*;

/// One value of a job's statistics.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Any whole number or truth value.
    Number(i128),
    /// Text.
    Text(String),
}

/// A file system as the guest agent describes it.
pub(crate) struct Mount {
    pub(crate) mountpoint: String,
    pub(crate) device: String,
    pub(crate) kind: String,
    pub(crate) targets: Vec<String>,
}

impl Dom {
    /// The job's type and its statistics by name.
    pub(crate) fn job_stats(&self, flags: u32) -> Answer<(i32, Vec<(String, Value)>)> {
        let (mut kind, mut params, mut len) = (0, ptr::null_mut(), 0);
        // SAFETY: all three are valid places for the answer.
        done(unsafe {
            sys::virDomainGetJobStats(self.raw(), &mut kind, &mut params, &mut len, flags)
        })?;
        let mut values = Vec::new();
        if !params.is_null() {
            // SAFETY: on success libvirt returns exactly `len` parameters.
            let list =
                unsafe { std::slice::from_raw_parts(params, usize::try_from(len).unwrap_or(0)) };
            values = list.iter().filter_map(value).collect();
            // SAFETY: the array and its strings were allocated for us; nothing points there now.
            unsafe { sys::virTypedParamsFree(params, len) };
        }
        Ok((kind, values))
    }

    pub(crate) fn mounts(&self) -> Answer<Vec<Mount>> {
        let mut array = ptr::null_mut();
        // SAFETY: `array` is a valid place for the answer.
        let len = count(unsafe { sys::virDomainGetFSInfo(self.raw(), &mut array, 0) })?;
        take_array(array, len, take_mount).map(|mounts| mounts.into_iter().flatten().collect())
    }
}

/// A parameter as a name and a value; unknown types are left out.
fn value(param: &sys::_virTypedParameter) -> Option<(String, Value)> {
    // SAFETY: the field is an array of `c_char`, which has the size and alignment of a byte.
    let field =
        unsafe { std::slice::from_raw_parts(param.field.as_ptr().cast::<u8>(), param.field.len()) };
    let name = CStr::from_bytes_until_nul(field)
        .ok()?
        .to_str()
        .ok()?
        .to_owned();
    let value = match u32::try_from(param.type_).ok()? {
        // SAFETY: the type says which member libvirt wrote, here and below.
        sys::VIR_TYPED_PARAM_INT => Value::Number(unsafe { param.value.i }.into()),
        // SAFETY: as above.
        sys::VIR_TYPED_PARAM_UINT => Value::Number(unsafe { param.value.ui }.into()),
        // SAFETY: as above.
        sys::VIR_TYPED_PARAM_LLONG => Value::Number(unsafe { param.value.l }.into()),
        // SAFETY: as above.
        sys::VIR_TYPED_PARAM_ULLONG => Value::Number(unsafe { param.value.ul }.into()),
        // SAFETY: as above.
        sys::VIR_TYPED_PARAM_BOOLEAN => Value::Number(unsafe { param.value.b }.into()),
        sys::VIR_TYPED_PARAM_STRING => {
            // SAFETY: as above; the string belongs to the array, which outlives this borrow.
            Value::Text(copy_string(unsafe { param.value.s }).ok()?)
        }
        _ => return None,
    };
    Some((name, value))
}

/// Copies one file system and frees it. Guest data: what is not UTF-8 is left out.
fn take_mount(raw: sys::virDomainFSInfoPtr) -> Answer<Option<Mount>> {
    // SAFETY: null or a valid record that is ours until it is freed below.
    let Some(info) = (unsafe { raw.as_ref() }) else {
        return Ok(None);
    };
    let text = |text: *mut c_char| copy_string(text).unwrap_or_default();
    let targets = if info.devAlias.is_null() {
        Vec::new()
    } else {
        // SAFETY: the record says how many names its array holds.
        let names = unsafe { std::slice::from_raw_parts(info.devAlias, info.ndevAlias) };
        names.iter().map(|name| text(*name)).collect()
    };
    let mount = Mount {
        mountpoint: text(info.mountpoint),
        device: text(info.name),
        kind: text(info.fstype),
        targets,
    };
    // SAFETY: the record was allocated for us and `info` is not used any more.
    unsafe { sys::virDomainFSInfoFree(raw) };
    Ok(Some(mount))
}
