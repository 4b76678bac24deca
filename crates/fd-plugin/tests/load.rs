//! The shared object itself: bacula-fd opens it with dlopen and looks two symbols up.
#![allow(unsafe_code)]

use std::ffi::{CString, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

type Load =
    unsafe extern "C" fn(*mut c_void, *mut c_void, *mut *mut c_void, *mut *mut c_void) -> c_int;

#[test]
fn the_object_loads_and_declines_an_unknown_interface() {
    let test = std::env::current_exe().unwrap();
    let object = test.with_file_name("liblab_backup_fd.so");
    let path = CString::new(object.as_os_str().as_bytes()).unwrap();
    // SAFETY: the object is this crate's; its initialisation does nothing.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    assert!(
        !handle.is_null(),
        "{} is not built or does not load",
        object.display()
    );
    // SAFETY: an open handle and two names.
    let symbols =
        unsafe { [c"loadPlugin", c"unloadPlugin"].map(|name| libc::dlsym(handle, name.as_ptr())) };
    assert!(symbols.iter().all(|symbol| !symbol.is_null()));
    // SAFETY: Bacula's own declaration of the symbol.
    let load = unsafe { std::mem::transmute::<*mut c_void, Load>(symbols[0]) };
    let mut info = [8_u32, 22];
    let (mut ours, mut funcs) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the version is looked at before anything else, and it is refused.
    let answer = unsafe {
        load(
            info.as_mut_ptr().cast(),
            ptr::null_mut(),
            &raw mut ours,
            &raw mut funcs,
        )
    };
    assert_eq!(answer, 2);
    assert!(ours.is_null() && funcs.is_null());
}
