//! The VMs that were found, one table each.

use std::fmt::Write as _;

use super::key::{bare, keys, quoted, word};
use crate::inventory::{Disk, Domain};
use crate::show;

/// Parts of a name that speak for tier 0: what others need in order to work at all.
const TIER_0: [&str; 7] = ["vpn", "gateway", "gw", "auth", "ldap", "ipa", "dns"];

/// The VMs as text, and what that text must mean.
pub(super) struct Found {
    pub(super) text: String,
    /// Key and UUID of each VM that is protected, by key.
    pub(super) protected: Vec<(String, Option<String>)>,
    pub(super) left_out: usize,
    pub(super) bytes: u64,
}

/// Describes every domain.
pub(super) fn describe(domains: &[Domain]) -> Found {
    let mut found = Found {
        text: String::new(),
        protected: Vec::new(),
        left_out: 0,
        bytes: 0,
    };
    if domains.is_empty() {
        found.text =
            "# There is no VM on this hypervisor yet. Write a table like the one above for each.\n"
                .into();
    }
    let names: Vec<&str> = domains.iter().map(|domain| domain.name.as_str()).collect();
    for (domain, key) in domains.iter().zip(keys(&names)) {
        let reason = left_out(domain);
        found.text.push_str(&table(&key, domain, reason));
        if reason.is_some() {
            found.left_out += 1;
            continue;
        }
        let sizes = domain.disks.iter().filter(|disk| disk.is_disk());
        let sizes = sizes.filter_map(|disk| disk.size);
        found.bytes = sizes.fold(found.bytes, u64::saturating_add);
        let uuid = Some(domain.uuid.to_ascii_lowercase());
        found.protected.push((key, uuid));
    }
    found.protected.sort();
    found
}

/// Why a domain is named, but not protected.
fn left_out(domain: &Domain) -> Option<&'static str> {
    if !domain.persistent {
        Some("it is transient: nothing is left of it when it stops")
    } else if !domain.disks.iter().any(Disk::is_disk) {
        Some("it has no disk that can be in a backup")
    } else {
        None
    }
}

fn table(key: &str, domain: &Domain, reason: Option<&str>) -> String {
    let mut text = remarks(key, domain);
    // What is left out can be switched on like any other setting.
    let off = if let Some(reason) = reason {
        let _ = writeln!(text, "# Left out: {reason}.");
        "#"
    } else {
        ""
    };
    let _ = writeln!(text, "{off}[vms.{}]", bare(key));
    if key != domain.name {
        if in_lab_toml(&domain.name) {
            let _ = writeln!(text, "{off}domain = {}", quoted(&domain.name));
        } else {
            text.push_str("# Its name cannot stand in this file; it is found by its UUID.\n");
        }
    }
    let _ = writeln!(text, "{off}uuid = {}", quoted(&domain.uuid));
    let (tier, why) = tier(&domain.name);
    let _ = writeln!(text, "# The tier is a guess ({why}); check it.");
    let _ = writeln!(text, "{off}tier = {tier}");
    let refused: Vec<_> = domain.disks.iter().filter(|d| is_refused(d)).collect();
    if !refused.is_empty() {
        let targets: Vec<_> = refused.iter().map(|disk| quoted(&disk.target)).collect();
        text.push_str("# No backup can read these; jobs fail until they are left out.\n");
        let _ = writeln!(text, "#exclude = [{}]", targets.join(", "));
    }
    text.push('\n');
    text
}

/// What the admin needs to know in order to judge.
fn remarks(key: &str, domain: &Domain) -> String {
    let mut text = String::new();
    if key != domain.name {
        let _ = writeln!(text, "# VM \"{}\"", word(&domain.name));
    }
    let disk = |disk: &Disk| {
        let size = disk.size.map_or("size not known".into(), show::bytes);
        let format = disk.format.as_deref().unwrap_or("raw");
        let size = size.replace(".0 ", " ").replace(".00 ", " ");
        format!("{} {} {size}", word(&disk.target), word(format))
    };
    let medium = |disk: &Disk| format!("{} {}", word(&disk.target), word(&disk.device));
    let list = |items: Vec<String>| match items.as_slice() {
        [] => "none".to_owned(),
        items => items.join(", "),
    };
    let (disks, others): (Vec<_>, Vec<_>) = domain.disks.iter().partition(|disk| disk.is_disk());
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    let _ = writeln!(
        text,
        "# firmware {}; agent {}; TPM {}; disks {}",
        word(&domain.firmware),
        yes(domain.agent),
        yes(domain.tpm),
        list(disks.into_iter().map(disk).collect())
    );
    if !others.is_empty() {
        let others = list(others.into_iter().map(medium).collect());
        let _ = writeln!(text, "# not in the backup: {others}");
    }
    if !domain.agent {
        text.push_str(
            "# It has no channel for a guest agent: backups are crash-consistent, like a disk after a power cut.\n",
        );
    }
    text
}

/// Is it neither read nor left out by itself?
fn is_refused(disk: &Disk) -> bool {
    !matches!(disk.device.as_str(), "disk" | "cdrom" | "floppy")
}

/// What [`crate::model`] takes as a domain's name.
fn in_lab_toml(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(char::is_control) && !name.contains('/')
}

/// A tier and why.
fn tier(name: &str) -> (u8, String) {
    let name = name.to_lowercase();
    match TIER_0.iter().find(|part| name.contains(**part)) {
        Some(part) => (0, format!("the name has {part:?}")),
        None => (2, format!("the name has none of {}", TIER_0.join(", "))),
    }
}
