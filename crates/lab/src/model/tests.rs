use super::tier::Retention;
use super::*;
use crate::schedule::Cycle;

const SMALL: &str =
    "version = 1\n[lab]\naddress = \"hv1.example.org\"\n[storage]\ndir = \"/srv/v\"\n";

fn problems(more: &str) -> Vec<String> {
    let problems = parse(&format!("{SMALL}{more}")).unwrap_err();
    problems.0.iter().map(Problem::to_string).collect()
}

#[test]
fn a_small_file_is_enough() {
    let model = parse(SMALL).unwrap();
    assert_eq!(model.account, "lab-backup");
    assert_eq!(model.storage.volume_bytes, 50 << 30);
    assert_eq!(model.hypervisor.address, "hv1.example.org");
    assert_eq!(model.tiers.len(), 4);
}

#[test]
fn an_empty_file_names_all_that_is_missing() {
    let problems = parse("").unwrap_err();
    let keys: Vec<_> = problems.0.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(keys, ["version", "lab.address", "storage.dir"]);
}

#[test]
fn every_problem_is_reported_at_once_and_once() {
    let seen = problems(
        "volume_size = \"lots\"\n[vms.\"$(id)\"]\ntier = 0\n[vms.a]\ntier = 9\nquiesce = \"maybe\"\nfreeze_ms = 1\n\
         [vms.b]\ncolour = 1\n[tiers.0]\nfull = \"often\"\nwindow = \"a while\"\n",
    );
    let starts = [
        "line 6: storage.volume_size: ",
        "line 7: vms.$(id): ",
        "line 10: vms.a.tier: ",
        "line 11: vms.a.quiesce: ",
        "line 12: vms.a.freeze_ms: ",
        "line 14: vms.b: unknown field `colour`",
        "line 16: tiers.0.full: ",
        "line 17: tiers.0.window: ",
    ];
    assert_eq!(seen.len(), starts.len(), "{seen:#?}");
    for (line, start) in seen.iter().zip(starts) {
        assert!(
            line.starts_with(start),
            "{line:?} should start with {start:?}"
        );
    }
}

#[test]
fn two_keys_for_one_machine_are_refused() {
    let seen = problems("[vms.a]\ntier = 0\ndomain = \"x\"\n[vms.b]\ntier = 0\ndomain = \"x\"\n");
    assert_eq!(seen.len(), 1);
    assert!(seen[0].contains("same machine as vms.a"), "{seen:?}");
}

#[test]
fn what_could_leave_its_quotes_is_refused() {
    for (key, value) in [
        ("storage.dir", "/srv/a b"),
        ("storage.dir", "/srv/../etc"),
        ("storage.dir", "srv"),
        ("storage.dir", "/srv:/etc"),
        ("lab.address", "a b"),
        ("lab.address", "-x"),
        ("lab.address", "localhost"),
        ("lab.address", "127.0.0.1"),
        ("lab.address", "10.1.2.3"),
        ("lab.address", "fd00::1"),
    ] {
        let (table, name) = key.split_once('.').unwrap();
        let other = if table == "lab" {
            "[storage]\ndir = \"/srv/v\"\n"
        } else {
            "[lab]\naddress = \"h\"\n"
        };
        let text = format!("version = 1\n{other}[{table}]\n{name} = {value:?}\n");
        let problems = parse(&text).unwrap_err();
        assert_eq!(problems.0.len(), 1, "{value:?}: {problems}");
        assert_eq!(problems.0[0].key, key);
    }
}

#[test]
fn the_shipped_tiers_keep_what_their_windows_need() {
    let model = parse(SMALL).unwrap();
    let kept = |n: u8| model.tiers[&n].retention();
    let all = |days| Retention {
        full: days,
        differential: days,
        incremental: days,
    };
    assert_eq!(kept(0), Some(all(30 + 7 + 10)));
    assert_eq!(kept(1), Some(all(60 + 35 + 10)));
    assert_eq!(kept(2), Some(all(30 + 35 + 10)));
    assert_eq!(kept(3), None);
}

/// Simulates years of jobs: at no time may a volume that a restore point inside the window hangs
/// on be older than its retention.
#[test]
fn no_restore_point_inside_the_window_ever_loses_an_ancestor() {
    for (full_gap, diff_gap, inc_gap, window) in [
        (7, 0, 1, 30),
        (35, 0, 7, 60),
        (35, 7, 1, 30),
        (35, 0, 0, 30),
    ] {
        let cycle = |gap: u32| match gap {
            0 => None,
            1 => Cycle::parse("daily 01:00").unwrap(),
            7 => Cycle::parse("weekly sun 01:00").unwrap(),
            _ => Cycle::parse("monthly 1st sun 01:00").unwrap(),
        };
        let tier = Tier {
            role: String::new(),
            full: cycle(full_gap),
            differential: cycle(diff_gap),
            incremental: cycle(inc_gap),
            window_days: Some(window),
            lzo: false,
            audit_every: 8,
        };
        let kept = tier.retention().unwrap();
        let due = |day: u32, gap: u32| gap != 0 && day.is_multiple_of(gap);
        // Chains as (day, retention of that volume), root first.
        let mut chain: Vec<(u32, u32)> = Vec::new();
        let mut points: Vec<Vec<(u32, u32)>> = Vec::new();
        for day in 0..400 {
            if due(day, full_gap) {
                chain = vec![(day, kept.full)];
            } else if due(day, diff_gap) {
                chain.truncate(1);
                chain.push((day, kept.differential));
            } else if due(day, inc_gap) {
                chain.push((day, kept.incremental));
            } else {
                continue;
            }
            points.push(chain.clone());
            for (at, point) in points.iter().enumerate() {
                // Wanted as long as some instant inside the window falls before its successor.
                let next = points.get(at + 1).map(|next| next.last().unwrap().0);
                if next.is_some_and(|next| day - next >= window) {
                    continue;
                }
                for (of, retention) in point {
                    assert!(
                        day - of <= *retention,
                        "{full_gap}/{diff_gap}/{inc_gap} day {day}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_a_hypervisor_is_told_is_checked() {
    let seen =
        problems("[hypervisors.hv1]\nscratch_dir = \"scratch\"\nrestore_dirs = [\"/a b\"]\n");
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(
        seen[0].contains("hypervisors.hv1.scratch_dir: "),
        "{seen:?}"
    );
}
