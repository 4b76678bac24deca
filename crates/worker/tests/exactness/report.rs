//! What many sequences came to.

use std::collections::BTreeMap;
use std::fmt;

/// What parts of one kind came to, in bytes.
#[derive(Default)]
pub(crate) struct Sent {
    pub(crate) parts: u64,
    sent: u64,
    changed: u64,
    read: u64,
}

impl Sent {
    pub(crate) fn add(&mut self, sent: u64, changed: u64, read: u64) {
        self.parts += 1;
        self.sent += sent;
        self.changed += changed;
        self.read += read;
    }

    fn join(&mut self, other: &Self) {
        self.parts += other.parts;
        self.sent += other.sent;
        self.changed += other.changed;
        self.read += other.read;
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = |bytes: u64| bytes as f64 / self.changed.max(1) as f64;
        write!(
            f,
            "{} parts, {:.3} sent and {:.2} read per changed byte",
            self.parts,
            ratio(self.sent),
            ratio(self.read)
        )
    }
}

/// What sequences came to.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) sequences: u64,
    pub(crate) jobs: u64,
    pub(crate) failed: u64,
    /// Deltas by bitmap, and by reading the whole disk.
    pub(crate) bitmap: Sent,
    pub(crate) whole: Sent,
    pub(crate) audits: u64,
    /// Audits that found a lie.
    pub(crate) lies: u64,
    /// Restores that were compared byte by byte.
    pub(crate) restores: u64,
    /// Restores of jobs that trusted a bitmap that had lied: what was recorded came back.
    pub(crate) lied: u64,
    /// Restores of chains with a job taken out, each known to be wrong.
    pub(crate) refused: u64,
    /// How often a disk started over, by reason.
    pub(crate) over: BTreeMap<String, u64>,
}

impl Tally {
    pub(crate) fn join(&mut self, other: &Self) {
        self.sequences += other.sequences;
        self.jobs += other.jobs;
        self.failed += other.failed;
        self.bitmap.join(&other.bitmap);
        self.whole.join(&other.whole);
        self.audits += other.audits;
        self.lies += other.lies;
        self.restores += other.restores;
        self.lied += other.lied;
        self.refused += other.refused;
        for (why, count) in &other.over {
            *self.over.entry(why.clone()).or_default() += count;
        }
    }

    /// One line each; what is asked for comes first.
    pub(crate) fn print(&self, what: &str) {
        let line = |name: &str, value: String| println!("{what:6} {name:28} {value}");
        line("sequences", self.sequences.to_string());
        line(
            "jobs",
            format!("{}, {} of them failed", self.jobs, self.failed),
        );
        line("restores compared", self.restores.to_string());
        // The first wrong byte ends the run.
        line("wrong bytes", "0".into());
        line("by bitmap", self.bitmap.to_string());
        line("by reading the whole disk", self.whole.to_string());
        line(
            "audits",
            format!("{}, {} found a lie", self.audits, self.lies),
        );
        line("restores of a lie", self.lied.to_string());
        line("broken chains, all refused", self.refused.to_string());
        for (why, count) in &self.over {
            line("started over", format!("{count:6}  {why}"));
        }
    }
}
