//! Tiers: how often VMs are backed up and how long that is kept.

use crate::schedule::Cycle;

/// Policy of a tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tier {
    /// What belongs there.
    pub(crate) role: String,
    /// When a Full runs by itself.
    pub(crate) full: Option<Cycle>,
    /// When a Differential runs.
    pub(crate) differential: Option<Cycle>,
    /// When an Incremental runs.
    pub(crate) incremental: Option<Cycle>,
    /// How many days back a restore must reach; `None` is for ever.
    pub(crate) window_days: Option<u32>,
    /// Are the records compressed? Then stock `bextract` no longer gives right images.
    pub(crate) lzo: bool,
    /// Every how many increments a disk is read whole and compared with its dirty bitmap.
    pub(crate) audit_every: u32,
}

/// How long volumes of each level are kept, in days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retention {
    /// Full.
    pub(crate) full: u32,
    /// Differential.
    pub(crate) differential: u32,
    /// Incremental.
    pub(crate) incremental: u32,
}

/// Late jobs, long jobs and a missed night must not cost a chain its root.
const SLACK_DAYS: u32 = 10;

impl Tier {
    /// How long volumes are kept; `None` is for ever.
    ///
    /// Bacula expires a volume by its age alone, whatever still hangs on it. A restore point that
    /// is `window` old may hang on a Full that is one full gap older, on a Differential that is
    /// one differential gap older, and on Incrementals as old as the root of their run.
    pub(crate) fn retention(&self) -> Option<Retention> {
        let window = self.window_days?;
        let full_gap = self.full.map_or(0, Cycle::gap_days);
        let run_gap = self.differential.map_or(full_gap, Cycle::gap_days);
        Some(Retention {
            full: window + full_gap + SLACK_DAYS,
            differential: window + run_gap + SLACK_DAYS,
            incremental: window + run_gap + SLACK_DAYS,
        })
    }
}

/// The policy that a tier has without a word in `lab.toml`.
pub(super) fn default(number: u8) -> Tier {
    let cycle = |text: &str| Cycle::parse(text).expect("the shipped schedules parse");
    let (role, full, incremental, window_days) = match number {
        0 => (
            "VPN gateway, authentication",
            "weekly sun 01:00",
            "daily 01:00",
            Some(30),
        ),
        1 => (
            "lab management",
            "monthly 1st sun 02:00",
            "weekly sun 02:00",
            Some(60),
        ),
        2 => ("workstations", "monthly 1st sat 03:00", "never", Some(30)),
        3 => ("legacy", "never", "never", None),
        _ => ("other", "monthly 1st sat 04:00", "never", Some(30)),
    };
    Tier {
        role: role.into(),
        full: cycle(full),
        differential: None,
        incremental: cycle(incremental),
        window_days,
        lzo: false,
        audit_every: 8,
    }
}
