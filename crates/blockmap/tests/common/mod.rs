//! What the tests share.

use std::ops::{ControlFlow, Range};

use blockmap::{Header, Key};

/// The key of every test.
pub(crate) fn key() -> Key {
    Key::from_bytes(std::array::from_fn(|i| i as u8))
}

/// A header of job number `job`.
pub(crate) fn header(job: u32, size: u64) -> Header {
    Header {
        job: format!("web01.2026-01-02_03.04.05_{job:02}"),
        full_read: "web01.2026-01-02_03.04.05_00".into(),
        trusting: 0,
        part_id: 0x0123_4567_89ab_cdef,
        delta_seq: job,
        identity: "file=8:1:42 format=raw target=vda".into(),
        size,
    }
}

/// Takes the ranges that a comparison reports, as single blocks.
#[allow(dead_code, reason = "not every test compares")]
pub(crate) fn collect(found: &mut Vec<u64>) -> impl FnMut(Range<u64>) -> ControlFlow<()> + '_ {
    |range| {
        assert!(!range.is_empty());
        found.extend(range);
        ControlFlow::Continue(())
    }
}

/// Every block in which two maps differ, found by repeated `next`.
#[allow(dead_code, reason = "not every test compares")]
pub(crate) fn differences<E>(
    mut next: impl FnMut(u64) -> Result<Option<Range<u64>>, E>,
) -> Result<Vec<u64>, E> {
    let (mut found, mut from) = (Vec::new(), 0);
    while let Some(range) = next(from)? {
        assert!(!range.is_empty() && range.start >= from);
        from = range.end;
        found.extend(range);
    }
    Ok(found)
}
