//! What a lab will take on its volumes, and how long its nights get: pure, from the tiers and the
//! sizes of the disks. An upper bound to buy storage by, not a measurement.
//!
//! * A Full takes the virtual size of every disk that is in the backup. Holes take nothing, so it
//!   is less in truth.
//! * [`Assumptions::change_percent`] of that changes each day. An Incremental takes what changed
//!   since the job before it, a Differential half of what changes from one Full to the next, which
//!   is the mean of all between them.
//! * A volume holds one job and is used again once its retention is over, when the next job of its
//!   level needs one. So there are those that are not older than the retention, and the one that
//!   is being written. 100 GB in a tier with a monthly Full and a window of 30 days are kept for
//!   75 days, which is three Fulls at most: 20 such VMs take 6 TB.

mod table;

use serde::Serialize;

use crate::inventory::{Domain, Inventory};
use crate::model::{Model, Tier, Vm};
use crate::schedule::{self, Cycle};

/// All that is not known, in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Assumptions {
    /// How much of a disk changes in a day, in percent of its size.
    pub(crate) change_percent: u32,
    /// What all jobs of a night write together, in MiB/s.
    pub(crate) rate_mib_s: u32,
    /// Days that are counted of a tier that is kept for ever.
    pub(crate) forever_days: u32,
}

impl Default for Assumptions {
    fn default() -> Self {
        Self {
            change_percent: 1,
            rate_mib_s: 200,
            forever_days: 365,
        }
    }
}

/// What a lab will take once it has run for longer than its windows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Forecast {
    /// What it rests on.
    pub(crate) assumptions: Assumptions,
    /// Each tier that has VMs.
    pub(crate) tiers: Vec<TierForecast>,
    /// All tiers together: volumes.
    pub(crate) volumes: u64,
    /// All tiers together: bytes on the volumes.
    pub(crate) bytes: u64,
    /// The night with most to write; none when nothing is scheduled.
    pub(crate) busiest: Option<Night>,
    /// VMs and disks whose size is not known, with the reason; nothing above holds them.
    pub(crate) not_counted: Vec<String>,
}

/// What a tier will take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TierForecast {
    /// Its number.
    pub(crate) tier: u8,
    /// VMs that are counted.
    pub(crate) vms: u64,
    /// Virtual size of their disks, in bytes.
    pub(crate) size: u64,
    /// Fulls that are kept of each VM.
    pub(crate) fulls: u64,
    /// Differentials that are kept of each VM.
    pub(crate) differentials: u64,
    /// Incrementals that are kept of each VM.
    pub(crate) incrementals: u64,
    /// Volumes of all its VMs.
    pub(crate) volumes: u64,
    /// Bytes on them.
    pub(crate) bytes: u64,
    /// Is nothing ever removed, while more is added? Then all this is after
    /// [`Assumptions::forever_days`].
    pub(crate) grows: bool,
}

/// One night.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Night {
    /// Such as `1st sat`.
    pub(crate) day: String,
    /// What its jobs write, in bytes.
    pub(crate) bytes: u64,
    /// How long that takes.
    pub(crate) seconds: u64,
}

/// One level of a tier.
struct Level {
    cycle: Option<Cycle>,
    /// Jobs that are kept of each VM.
    kept: u64,
    /// What share of a VM's size a job writes.
    share: Share,
}

/// A part of a whole, at most all of it.
#[derive(Clone, Copy)]
struct Share(u128, u128);

impl Share {
    const ALL: Self = Self(1, 1);

    fn of(self, bytes: u64) -> u64 {
        let Self(part, whole) = self;
        let part = u128::from(bytes)
            .saturating_mul(part)
            .div_ceil(whole.max(1));
        u64::try_from(part).unwrap_or(u64::MAX).min(bytes)
    }
}

/// Looks ahead.
pub(crate) fn forecast(model: &Model, inventory: &Inventory, assumed: Assumptions) -> Forecast {
    let mut not_counted = Vec::new();
    let mut tiers = Vec::new();
    let mut nights = [0u64; schedule::DAYS_OF_MONTH];
    for (&number, tier) in &model.tiers {
        let of_tier = model.vms.iter().filter(|(_, vm)| vm.tier == number);
        let sizes = of_tier.filter_map(|(key, vm)| size(key, vm, inventory, &mut not_counted));
        let sizes: Vec<u64> = sizes.collect();
        if sizes.is_empty() {
            continue;
        }
        let levels = levels(tier, assumed);
        let row = row(number, tier, &levels, &sizes, model.storage.volume_bytes);
        for (night, (nth, day)) in nights.iter_mut().zip(schedule::days_of_month()) {
            let due = levels.iter().find(|level| {
                let cycle = level.cycle;
                cycle.is_some_and(|cycle| cycle.falls_on(nth, day))
            });
            let written = due.map_or(0, |level| level.share.of(row.size));
            *night = night.saturating_add(written);
        }
        tiers.push(row);
    }
    let sum = |of: fn(&TierForecast) -> u64| tiers.iter().map(of).fold(0, u64::saturating_add);
    Forecast {
        assumptions: assumed,
        volumes: sum(|tier| tier.volumes),
        bytes: sum(|tier| tier.bytes),
        busiest: busiest(&nights, assumed.rate_mib_s),
        tiers,
        not_counted,
    }
}

/// Size of the disks of a VM that are in its backup; what is not known is noted.
fn size(key: &str, vm: &Vm, inventory: &Inventory, unknown: &mut Vec<String>) -> Option<u64> {
    let is = |domain: &&Domain| match &vm.policy.uuid {
        Some(uuid) => domain.uuid.eq_ignore_ascii_case(uuid),
        None => domain.name == vm.policy.domain,
    };
    let Some(domain) = inventory.domains.iter().find(is) else {
        unknown.push(format!("{key} (no such domain here)"));
        return None;
    };
    let mut size = 0u64;
    for disk in &domain.disks {
        if !disk.is_disk() || vm.policy.exclude.contains(&disk.target) {
            continue;
        }
        match disk.size {
            Some(bytes) => size = size.saturating_add(bytes),
            None => {
                let target = disk.target.escape_debug();
                unknown.push(format!("{key} {target} (size not known)"));
            }
        }
    }
    Some(size)
}

/// Full, Differential and Incremental of a tier: of those that fall on one day the first runs.
fn levels(tier: &Tier, assumed: Assumptions) -> [Level; 3] {
    let kept = tier.retention();
    let days = |days: Option<u32>| days.unwrap_or(assumed.forever_days);
    let percent = u128::from(assumed.change_percent);
    // What changes between two runs, or half of it: percent of the size times days.
    let changed = |cycle: Option<Cycle>, parts: u128| match cycle.map(|c| c.per_month(&[])) {
        None | Some(0) => Share::ALL,
        Some(runs) => {
            let month = u128::from(schedule::MONTH);
            Share(percent * month, 100 * parts * u128::from(runs))
        }
    };
    let count = |cycle: Option<Cycle>, greater: [Option<Cycle>; 2], days: u32| {
        let greater: Vec<Cycle> = greater.into_iter().flatten().collect();
        let runs = cycle.map_or(0, |cycle| cycle.per_month(&greater));
        let within = u64::from(days) * u64::from(runs) / u64::from(schedule::MONTH);
        if runs == 0 { 0 } else { within + 1 }
    };
    let (full, differential) = (tier.full, tier.differential);
    let level = |cycle, kept, share| Level { cycle, kept, share };
    let fulls = count(full, [None; 2], days(kept.map(|k| k.full)));
    let diffs = days(kept.map(|k| k.differential));
    let incs = days(kept.map(|k| k.incremental));
    [
        // The first job of a VM is a Full, also where none is scheduled.
        level(full, fulls.max(1), Share::ALL),
        level(
            differential,
            count(differential, [full, None], diffs),
            changed(full, 2),
        ),
        level(
            tier.incremental,
            count(tier.incremental, [full, differential], incs),
            changed(tier.incremental, 1),
        ),
    ]
}

fn row(
    number: u8,
    tier: &Tier,
    levels: &[Level; 3],
    sizes: &[u64],
    volume_bytes: u64,
) -> TierForecast {
    let [full, differential, incremental] = levels;
    let mut row = TierForecast {
        tier: number,
        vms: sizes.len() as u64,
        size: sizes.iter().copied().fold(0, u64::saturating_add),
        fulls: full.kept,
        differentials: differential.kept,
        incrementals: incremental.kept,
        grows: tier.window_days.is_none() && levels.iter().any(|level| level.cycle.is_some()),
        ..TierForecast::default()
    };
    for level in levels {
        for &size in sizes {
            let bytes = level.share.of(size);
            let volumes = bytes.div_ceil(volume_bytes).max(1);
            row.bytes = row.bytes.saturating_add(bytes.saturating_mul(level.kept));
            let volumes = volumes.saturating_mul(level.kept);
            row.volumes = row.volumes.saturating_add(volumes);
        }
    }
    row
}

fn busiest(nights: &[u64; schedule::DAYS_OF_MONTH], rate_mib_s: u32) -> Option<Night> {
    let mut best: Option<(u64, String)> = None;
    for (&bytes, (nth, day)) in nights.iter().zip(schedule::days_of_month()) {
        // The first of several that are alike.
        if bytes > best.as_ref().map_or(0, |(most, _)| *most) {
            best = Some((bytes, schedule::day_name(nth, day)));
        }
    }
    best.map(|(bytes, day)| Night {
        day,
        bytes,
        seconds: bytes.div_ceil(u64::from(rate_mib_s.max(1)) << 20),
    })
}

#[cfg(test)]
mod tests;
