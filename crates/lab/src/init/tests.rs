use std::collections::BTreeSet;

use super::*;
use crate::config;
use crate::inventory::tests::{disk, domain, inventory};
use crate::inventory::{Disk, Domain};

fn text(domains: Vec<Domain>) -> String {
    draft("hv1.example.org", "/srv/v", &inventory(domains))
        .unwrap()
        .text
}

/// The text with every setting switched on.
fn switched_on(text: &str) -> String {
    let setting = |line: &str| {
        let name = line.trim_start_matches(|c: char| c.is_ascii_lowercase() || c == '_');
        line.starts_with('[') || (name.len() < line.len() && name.starts_with(" = "))
    };
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if setting(rest) => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[test]
fn an_empty_host_gets_a_file_with_an_example() {
    let text = text(Vec::new());
    let model = model::parse(&text).unwrap();
    assert!(model.vms.is_empty());
    assert!(text.contains("\n#[vms.example]\n"), "{text}");
    assert!(text.contains("There is no VM"), "{text}");
}

#[test]
fn every_setting_that_is_switched_on_means_what_held_before() {
    let text = text(vec![domain("web01", 1, vec![disk("vda", "disk", 40)])]);
    let before = model::parse(&text).unwrap();
    let on = switched_on(&text);
    assert!(on.lines().count() > 50 && on != text);
    let mut after = model::parse(&on).unwrap();
    let example = after.vms.remove("example").unwrap();
    let least = format!("{text}[vms.example]\ntier = 2\n");
    assert_eq!(example, model::parse(&least).unwrap().vms["example"]);
    assert_eq!(after, before);
}

const MANUAL: &str = include_str!("../../../../docs/lab-toml.md");

/// Asks the reader itself for its keys, so that a new one cannot be forgotten here.
#[test]
fn every_key_is_named() {
    let text = text(Vec::new());
    let keys = |table: &str| -> BTreeSet<String> {
        let (_, problems) = config::read(&format!("{table}\nno_such_key = 1\n"));
        let reason = &problems[0].reason;
        let keys = reason.split('`').skip(3).step_by(2).map(str::to_owned);
        keys.collect()
    };
    for (heading, count) in [
        ("[lab]", 2),
        ("[storage]", 6),
        ("[images]", 4),
        ("[alerts]", 4),
        ("[account]", 1),
        ("[tiers.0]", 7),
        ("[hypervisors.local]", 4),
        ("[vms.example]", 7),
        ("[users.alice]", 2),
    ] {
        let keys = keys(heading);
        assert!(keys.len() >= count, "{heading}: {keys:?}");
        let start = text.find(heading).unwrap() + heading.len();
        let table = text[start..].split("\n[").next().unwrap();
        for key in keys {
            let there = ["\n", "\n#", "\n# "]
                .iter()
                .any(|before| table.contains(&format!("{before}{key} = ")));
            assert!(there, "{key} of {heading}");
            let name = heading.trim_matches(['[', ']']).split('.').next().unwrap();
            let (_, section) = MANUAL.split_once(&format!("\n## [{name}")).unwrap();
            let section = section.split("\n## ").next().unwrap();
            let told = section.contains(&format!("\n| `{key}` |"));
            assert!(told, "{key} of {heading} in docs/lab-toml.md");
        }
    }
}

#[test]
fn a_vm_comes_with_what_is_needed_to_judge_it() {
    let gateway = Domain {
        tpm: true,
        ..domain(
            "VPN-1",
            1,
            vec![disk("vda", "disk", 40), disk("sda", "cdrom", 1)],
        )
    };
    let mut unknown = disk("vda", "disk", 1);
    (unknown.size, unknown.format) = (None, None);
    let web = Domain {
        agent: false,
        firmware: "bios".into(),
        ..domain("web", 2, vec![unknown, disk("sdb", "lun", 1)])
    };
    let draft = draft("h", "/srv/v", &inventory(vec![gateway, web])).unwrap();
    for line in [
        "# firmware efi; agent yes; TPM yes; disks vda qcow2 40 GiB",
        "# not in the backup: sda cdrom",
        "# firmware bios; agent no; TPM no; disks vda raw size not known",
        "#exclude = [\"sdb\"]",
    ] {
        assert!(draft.text.lines().any(|l| l == line), "{}", draft.text);
    }
    assert_eq!(draft.text.matches("crash-consistent").count(), 1);
    assert_eq!((draft.vms, draft.left_out, draft.bytes), (2, 0, 40 << 30));
    let model = model::parse(&draft.text).unwrap();
    assert_eq!(model.vms["VPN-1"].tier, 0);
    assert_eq!(model.vms["web"].tier, 2);
    assert!(draft.text.contains("(the name has \"vpn\")"));
}

#[test]
fn what_cannot_be_protected_is_named_with_the_reason_and_can_be_switched_on() {
    let brief = Domain {
        persistent: false,
        ..domain("brief", 1, vec![disk("vda", "disk", 1)])
    };
    let live = domain("live", 2, vec![disk("sda", "cdrom", 1)]);
    let bare = domain("bare", 3, Vec::new());
    let draft = draft("h", "/srv/v", &inventory(vec![bare, brief, live])).unwrap();
    assert_eq!((draft.vms, draft.left_out, draft.bytes), (0, 3, 0));
    assert_eq!(
        draft.text.matches("\n# Left out: it is transient").count(),
        1
    );
    assert_eq!(
        draft.text.matches("\n# Left out: it has no disk").count(),
        2
    );
    let model = model::parse(&switched_on(&draft.text)).unwrap();
    assert_eq!(model.vms.len(), 4);
}

#[test]
fn hostile_names_break_nothing_and_stay_what_they_are() {
    let long = "x".repeat(200);
    let names = [
        "web]\n[vms.evil]\ntier = 0",
        "a\r\n#b",
        "say \"hi\" \\ 'you' \"\"\"",
        "]",
        "[vms.a]",
        "\u{0}\u{7f}\u{85}",
        "\u{2028}\u{202e}abc",
        "# x",
        "日本語",
        "",
        "a/b",
        "a b",
        "a-b",
        "a-b-2",
        "a?b",
        "lab-backup-sd",
        "lab-backup-",
        "-lab-backup-x",
        "v.1",
        "..",
        &long,
        &format!("{long}y"),
    ];
    let domains = names.iter().zip(1..);
    let domains: Vec<_> = domains
        .map(|(name, n)| {
            let mut vda = disk(name, "disk", 1);
            vda.format = Some((*name).into());
            let disks = vec![vda, disk(name, "lun", 1), disk(name, name, 1)];
            Domain {
                firmware: (*name).into(),
                ..domain(name, n, disks)
            }
        })
        .collect();
    let text = text(domains.clone());
    let model = model::parse(&text).unwrap();
    assert_eq!(model.vms.len(), names.len(), "{:?}", model.vms.keys());
    for domain in &domains {
        let uuid = Some(&domain.uuid);
        let mut vms = model.vms.iter();
        let (key, vm) = vms.find(|(_, vm)| vm.policy.uuid.as_ref() == uuid).unwrap();
        assert!(key.len() <= 64);
        let told = !domain.name.is_empty() && !domain.name.contains(['/', '\n', '\0']);
        assert!(!told || vm.policy.domain == domain.name, "{key}");
    }
    for key in ["a-b", "a-b-2", "a-b-3", "a-b-4", "vm-lab-backup-sd", "v.1"] {
        assert!(model.vms.contains_key(key), "{key}: {:?}", model.vms.keys());
    }
    let odd = |c: char| c != '\n' && c.is_control() || "\u{2028}\u{202e}".contains(c);
    assert!(!text.contains(odd));
}

#[test]
fn settings_that_are_none_are_refused() {
    for (address, storage, key) in [
        ("10.0.0.1", "/srv/v", "lab.address"),
        ("a\"\nb", "/srv/v", "lab.address"),
        ("h", "srv", "storage.dir"),
    ] {
        let refused = draft(address, storage, &inventory(Vec::new()));
        let Err(Error::Setting(problem)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(problem.key, key);
    }
}

#[test]
fn an_inventory_that_cannot_be_is_a_defect_and_not_a_file() {
    let twice = vec![
        domain("a", 1, vec![disk("vda", "disk", 1)]),
        domain("b", 1, vec![disk("vda", "disk", 1)]),
    ];
    let refused = draft("h", "/srv/v", &inventory(twice));
    assert!(matches!(refused, Err(Error::Defect(_))), "{refused:?}");
    let huge = |n| Disk {
        size: Some(u64::MAX),
        ..disk(if n == 1 { "vda" } else { "vdb" }, "disk", 1)
    };
    let domain = domain("a", 1, vec![huge(1), huge(2)]);
    let draft = draft("h", "/srv/v", &inventory(vec![domain])).unwrap();
    assert_eq!(draft.bytes, u64::MAX);
}

#[test]
fn a_share_and_a_base_are_switched_on() {
    let mut draft = draft("h", "/srv/v", &inventory(vec![])).unwrap();
    draft.nfs("nas:/a").unwrap();
    draft.base("/b.tar").unwrap();
    let model = model::parse(&draft.text).unwrap();
    assert_eq!(model.storage.nfs.unwrap().source, "nas:/a");
    assert_eq!(model.images.base, model::Base::Tar("/b.tar".into()));
    for wrong in ["nas", "nas:/a\"\n[x]"] {
        let error = draft.nfs(wrong).unwrap_err();
        assert!(
            matches!(error, Error::Defect(_) | Error::Setting(_)),
            "{error}"
        );
    }
}
