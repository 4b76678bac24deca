//! Was exactly that sent which changed?

use anyhow::{Result, ensure};
use blockmap::BLOCK;
use worker::backup::Look;

use crate::job::Done;

/// What is true of a part.
pub(crate) struct Found {
    /// Bytes of the blocks that changed, or that are not zero if the disk starts over.
    pub(crate) changed_bytes: u64,
    /// Was a bitmap compared with what changed?
    pub(crate) audited: bool,
}

/// Compares a part with the disk as the backup had it `then` and as it is `now`. Unless it is `clean`, a
/// bitmap may have lied. `marked` tells of ranges whether the bitmap marks all of them.
pub(crate) fn examine(
    done: &Done,
    then: &[u8],
    now: &[u8],
    clean: bool,
    marked: &dyn Fn(u64, u64) -> bool,
) -> Result<Found> {
    let blocks = now.len().div_ceil(BLOCK);
    let mut sent = vec![false; blocks];
    for (offset, bytes) in &done.part.records {
        let (from, to) = (*offset as usize, *offset as usize + bytes.len());
        let same = now.get(from..to) == Some(bytes);
        ensure!(same, "the record at {offset} is not what is there");
        sent[from / BLOCK..to.div_ceil(BLOCK)].fill(true);
    }
    let delta = done.over.is_none();
    let resized = !delta || then.len() != now.len();
    let doubted = done.look == Some(Look::Bitmap) && done.read_whole;
    let audited = delta && (done.look == Some(Look::Audit) || doubted);
    let (mut changed_bytes, mut nonzero, mut unmarked) = (0, 0, false);
    for (at, sent) in sent.into_iter().enumerate() {
        let now = block(now, at);
        let due = if delta {
            differs(block(then, at), now)
        } else {
            differs(&[], now)
        };
        nonzero += u64::from(differs(&[], now));
        if due {
            let len = now.len() as u64;
            changed_bytes += len;
            unmarked |= audited && !marked((at * BLOCK) as u64, len);
        }
        let must = due || resized && at + 1 == blocks;
        // The fingerprint of a short last block is of its true length, and so of another block now.
        let was_short = resized && (at * BLOCK..at * BLOCK + now.len()).contains(&then.len());
        let may = must || was_short;
        ensure!(!sent || may, "block {at} was sent and did not change");
        let may_not = !must || !clean;
        ensure!(sent || may_not, "block {at} changed and was not sent");
    }
    if delta {
        let most = (nonzero + 2 * u64::from(resized)) * BLOCK as u64;
        ensure!(done.sent_bytes() <= most, "the delta is more than the disk");
    }
    if audited {
        let (due, said) = (unmarked, done.missed);
        ensure!(
            due == said,
            "the bitmap lied: {due}, the audit says: {said}"
        );
    }
    Ok(Found {
        changed_bytes,
        audited,
    })
}

fn block(of: &[u8], at: usize) -> &[u8] {
    let from = (at * BLOCK).min(of.len());
    &of[from..(from + BLOCK).min(of.len())]
}

/// Is a block another one than before? Beyond the end that a disk had, it was zero.
fn differs(then: &[u8], now: &[u8]) -> bool {
    let shared = now.len().min(then.len());
    now[..shared] != then[..shared] || now[shared..].iter().any(|byte| *byte != 0)
}
