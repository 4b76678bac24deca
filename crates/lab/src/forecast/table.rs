//! A forecast as people read it.

use std::fmt;

use comfy_table::{ContentArrangement, Table, presets};

use super::Forecast;
use crate::show;

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let assumed = self.assumptions;
        writeln!(
            f,
            "forecast, if all disks are full and {} % changes a day; jobs kept of each VM:",
            assumed.change_percent
        )?;
        for line in self.table().lines() {
            writeln!(f, "  {}", line.trim_end())?;
        }
        for tier in self.tiers.iter().filter(|tier| tier.grows) {
            writeln!(
                f,
                "tier {} is kept for ever: its line is that of the first {} days",
                tier.tier, assumed.forever_days
            )?;
        }
        if let Some(night) = &self.busiest {
            writeln!(
                f,
                "busiest night: {}, {} in {} at {} MiB/s",
                night.day,
                show::bytes(night.bytes),
                minutes(night.seconds),
                assumed.rate_mib_s
            )?;
        }
        if !self.not_counted.is_empty() {
            writeln!(f, "not counted: {}", self.not_counted.join(", "))?;
        }
        Ok(())
    }
}

impl Forecast {
    fn table(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header([
                "TIER", "VMS", "SIZE", "FULLS", "DIFFS", "INCS", "VOLUMES", "SPACE",
            ]);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for tier in &self.tiers {
            table.add_row([
                tier.tier.to_string(),
                tier.vms.to_string(),
                show::bytes(tier.size),
                tier.fulls.to_string(),
                tier.differentials.to_string(),
                tier.incrementals.to_string(),
                tier.volumes.to_string(),
                show::bytes(tier.bytes),
            ]);
        }
        if self.tiers.len() > 1 {
            let size = self.tiers.iter().map(|tier| tier.size);
            let vms: u64 = self.tiers.iter().map(|tier| tier.vms).sum();
            table.add_row([
                "all".to_owned(),
                vms.to_string(),
                show::bytes(size.fold(0, u64::saturating_add)),
                String::new(),
                String::new(),
                String::new(),
                self.volumes.to_string(),
                show::bytes(self.bytes),
            ]);
        }
        table.to_string()
    }
}

/// A duration to the minute, rounded up.
fn minutes(seconds: u64) -> String {
    let minutes = seconds.div_ceil(60);
    match (minutes / 60, minutes % 60) {
        (0, minutes) => format!("{minutes} min"),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}
