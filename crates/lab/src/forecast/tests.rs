use super::*;
use crate::inventory::tests::{disk, domain, inventory};
use crate::model;

const SMALL: &str =
    "version = 1\n[lab]\naddress = \"hv1.example.org\"\n[storage]\ndir = \"/srv/v\"\n";

fn lab(more: &str) -> Model {
    model::parse(&format!("{SMALL}{more}")).unwrap()
}

/// `count` VMs of one tier with one disk of `bytes` each.
fn vms(tier: u8, count: u32, bytes: u64) -> (String, Vec<Domain>) {
    let name = |n| format!("t{tier}-{n}");
    let table = |n| format!("[vms.{}]\ntier = {tier}\n", name(n));
    let domains = (0..count).map(|n| {
        let mut vda = disk("vda", "disk", 0);
        vda.size = Some(bytes);
        domain(&name(n), n + 1000 * u32::from(tier), vec![vda])
    });
    ((0..count).map(table).collect(), domains.collect())
}

fn ahead(text: &str, domains: Vec<Domain>) -> Forecast {
    forecast(&lab(text), &inventory(domains), Assumptions::default())
}

#[test]
fn twenty_vms_of_100_gb_kept_for_30_days_take_6_tb() {
    let (text, domains) = vms(2, 20, 100_000_000_000);
    let forecast = ahead(&text, domains);
    assert_eq!(forecast.bytes, 6_000_000_000_000);
    let [tier] = forecast.tiers.as_slice() else {
        panic!("{forecast:?}");
    };
    assert_eq!((tier.tier, tier.vms, tier.fulls), (2, 20, 3));
    assert_eq!((tier.differentials, tier.incrementals), (0, 0));
    // 100 GB are two volumes of 50 GiB.
    assert_eq!(tier.volumes, 20 * 3 * 2);
    assert_eq!(tier.size, 2_000_000_000_000);
    assert!(!tier.grows);
    let night = forecast.busiest.unwrap();
    assert_eq!((night.day.as_str(), night.bytes), ("1st sat", tier.size));
    assert_eq!(night.seconds, 9537);
}

#[test]
fn a_weekly_full_with_daily_incrementals() {
    let (text, domains) = vms(0, 1, 100 << 30);
    let forecast = ahead(&text, domains);
    let tier = &forecast.tiers[0];
    // 47 days: six weeks back and the one being written; six increments a week, likewise.
    assert_eq!((tier.fulls, tier.incrementals), (7, 41));
    assert_eq!(tier.bytes, (700 << 30) + (41 << 30));
    assert_eq!(tier.volumes, 7 * 2 + 41);
    assert_eq!(forecast.busiest.unwrap().day, "1st sun");
}

#[test]
fn differentials_are_half_of_what_changes_between_two_fulls() {
    let (text, domains) = vms(5, 1, 1000 << 30);
    let policy = "[tiers.5]\nfull = \"monthly 1st sun 01:00\"\ndifferential = \"weekly sun 01:00\"\n\
                  incremental = \"daily 01:00\"\nwindow = \"30 days\"\n";
    let forecast = ahead(&format!("{policy}{text}"), domains);
    let tier = &forecast.tiers[0];
    // Fulls are kept for 75 days, the others for 47: 3.34 Sundays and 26.06 other days in a month.
    assert_eq!(tier.fulls, 3);
    assert_eq!(tier.differentials, 6);
    assert_eq!(tier.incrementals, 41);
    assert_eq!(tier.bytes, (3000 << 30) + 6 * (152 << 30) + 41 * (10 << 30));
}

#[test]
fn an_increment_is_never_larger_than_the_disk() {
    let (text, domains) = vms(1, 1, 1 << 30);
    let all = Assumptions {
        change_percent: 50,
        ..Assumptions::default()
    };
    let forecast = forecast(&lab(&text), &inventory(domains), all);
    let tier = &forecast.tiers[0];
    assert_eq!(tier.bytes, (tier.fulls + tier.incrementals) << 30);
}

#[test]
fn what_is_kept_for_ever_is_one_full_or_is_told_to_grow() {
    let (text, domains) = vms(3, 2, 10 << 30);
    let forecast = ahead(&text, domains.clone());
    let tier = &forecast.tiers[0];
    assert_eq!((tier.fulls, tier.bytes, tier.grows), (1, 20 << 30, false));
    assert_eq!(forecast.busiest, None);
    let policy = "[tiers.3]\nfull = \"monthly 1st sun 01:00\"\n";
    let forecast = ahead(&format!("{policy}{text}"), domains);
    let tier = &forecast.tiers[0];
    // Twelve in a year, and the one being written.
    assert_eq!((tier.fulls, tier.grows), (13, true));
    let shown = forecast.to_string();
    assert!(shown.contains("tier 3 is kept for ever"), "{shown}");
}

#[test]
fn a_level_that_another_one_always_replaces_is_not_counted() {
    let (text, domains) = vms(5, 1, 1 << 30);
    let policy = "[tiers.5]\nfull = \"daily 01:00\"\nincremental = \"weekly sun 01:00\"\n";
    let forecast = ahead(&format!("{policy}{text}"), domains);
    let tier = &forecast.tiers[0];
    assert_eq!((tier.fulls, tier.incrementals), (42, 0));
}

#[test]
fn only_what_is_in_the_backup_counts_and_what_is_not_known_is_named() {
    let mut unknown = disk("vdc", "disk", 1);
    unknown.size = None;
    let disks = vec![
        disk("vda", "disk", 10),
        disk("vdb", "disk", 20),
        unknown,
        disk("sda", "cdrom", 4),
    ];
    let text = "[vms.a]\ntier = 2\nexclude = [\"vdb\"]\n\
                [vms.b]\ntier = 2\nuuid = \"00000000-0000-4000-8000-0000000000AB\"\n\
                [vms.c]\ntier = 2\n";
    let renamed = domain("new", 0xab, vec![disk("vda", "disk", 1)]);
    // The name of another machine does not count against a UUID.
    let other = domain("b", 7, vec![disk("vda", "disk", 500)]);
    let forecast = ahead(text, vec![domain("a", 1, disks), renamed, other]);
    assert_eq!(forecast.tiers[0].size, 11 << 30);
    assert_eq!(forecast.tiers[0].vms, 2);
    assert_eq!(
        forecast.not_counted,
        ["a vdc (size not known)", "c (no such domain here)"]
    );
}

#[test]
fn the_busiest_night_takes_all_tiers_together() {
    let (gateway, mut domains) = vms(0, 1, 100 << 30);
    let (desktop, more) = vms(2, 1, 200 << 30);
    domains.extend(more);
    let slow = Assumptions {
        rate_mib_s: 1,
        ..Assumptions::default()
    };
    let lab = lab(&format!("{gateway}{desktop}"));
    let forecast = forecast(&lab, &inventory(domains), slow);
    let night = forecast.busiest.as_ref().unwrap();
    assert_eq!(night.day, "1st sat");
    // The desktop's Full and the gateway's Incremental.
    assert_eq!((night.bytes, night.seconds), (201 << 30, 201 << 10));
    let shown = forecast.to_string();
    assert!(shown.contains("57 h 11 min at 1 MiB/s"), "{shown}");
    assert!(shown.contains("\n  all"), "{shown}");
}

#[test]
fn sizes_that_cannot_be_do_not_overflow() {
    let (text, domains) = vms(0, 3, u64::MAX);
    let forecast = ahead(&text, domains);
    assert_eq!(forecast.bytes, u64::MAX);
}
