//! The callbacks, driven as bacula-fd drives them, against a worker on a real socket.

mod backup;
mod bacula;
mod boundary;
mod restore;
mod stall;
mod worker;

use std::cell::{Cell, RefCell};

use crate::job::Settings;

thread_local! {
    /// Settings of the test that runs on this thread, in place of the environment's.
    static SETTINGS: RefCell<Option<Settings>> = const { RefCell::new(None) };
    /// Shall the next callback on this thread panic?
    static PANIC: Cell<bool> = const { Cell::new(false) };
}

pub(crate) fn settings() -> Option<Settings> {
    SETTINGS.with_borrow(Clone::clone)
}

/// Called inside every callback.
pub(crate) fn panic_if_asked() {
    assert!(!PANIC.take(), "asked to");
}
