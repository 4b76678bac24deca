//! Lines for the journal of the host.

/// Like `eprintln!`, but a journal that is gone is no reason to panic: whoever thaws goes on.
macro_rules! note {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

pub(crate) use note;
