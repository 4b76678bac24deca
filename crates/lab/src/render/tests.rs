//! Golden files under `testdata/lab/`: what a reference `lab.toml` becomes. When a change is meant,
//! `UPDATE_GOLDEN=1 cargo test -p lab` rewrites them; the diff is then part of the review.

use super::*;
use crate::model;

const LAB: &str = include_str!("../../testdata/lab/lab.toml");

fn facts() -> Facts {
    let number = |n: usize| format!("{n:016x}");
    Facts {
        uid: 1000,
        plugin_dir: "/usr/lib64/bacula".into(),
        fd_work_dir: "/var/spool/bacula".into(),
        secrets: secrets(&model::parse(LAB).unwrap())
            .into_iter()
            .map(|name| (name.clone(), format!("ksecret{name}")))
            .collect(),
        sources: [("catalog", 1), ("director", 2), ("storage", 3)]
            .map(|(k, n)| (k, number(n)))
            .into(),
        base: None,
        retired: BTreeMap::new(),
        director_data: "/home/lab-backup/director".into(),
        passphrase: "ksecretkit".into(),
        sentinel: "kmark".into(),
        mounted: None,
        selinux: false,
    }
}

#[test]
fn the_reference_lab_renders_as_recorded() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/lab");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let desired = render(&model::parse(LAB).unwrap(), &facts());
    let mut names = Vec::new();
    for file in desired.files.iter().filter(|f| !f.secret) {
        let name = file.path.file_name().unwrap().to_str().unwrap().to_owned();
        let path = golden.join(&name);
        if update {
            std::fs::write(&path, &file.text).unwrap();
        }
        let recorded = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            file.text,
            recorded,
            "{name} differs from {}",
            path.display()
        );
        names.push(name);
    }
    for entry in std::fs::read_dir(&golden).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name == "lab.toml" || names.contains(&name),
            "{name} is no longer rendered"
        );
    }
}

#[test]
fn no_secret_is_in_a_file_that_may_be_shown() {
    let desired = render(&model::parse(LAB).unwrap(), &facts());
    for file in desired.files.iter().filter(|f| !f.secret) {
        assert!(!file.text.contains("ksecret"), "{}", file.path.display());
    }
    for file in desired.files.iter().filter(|f| f.secret) {
        assert_eq!(file.mode, 0o600, "{}", file.path.display());
    }
}

#[test]
fn every_end_of_every_connection_requires_tls() {
    let desired = render(&model::parse(LAB).unwrap(), &facts());
    let mut passwords = 0;
    for file in desired.files.iter().filter(|f| !f.secret) {
        let lines = || file.text.lines().map(str::trim);
        let count = |start: &str| lines().filter(|l| l.starts_with(start)).count();
        // The catalog's is PostgreSQL's own; a daemon's own resource has none.
        let own = lines()
            .filter(|l| *l == "FileDaemon {" || *l == "Storage {")
            .count();
        let own = if file.path.ends_with("bacula-dir.conf") {
            0
        } else {
            own
        };
        assert_eq!(
            count("TLS Require = yes"),
            count("Password =") + own,
            "{}",
            file.path.display()
        );
        passwords += count("Password =");
    }
    assert!(passwords >= 9, "{passwords}");
}

#[test]
fn units_hold_no_key_that_podman_5_4_lacks() {
    let model = model::parse(LAB).unwrap();
    let images = images(&model, &facts());
    let units = units::all(&model, &images);
    assert_eq!(units.len(), 7);
    for (name, unit) in units {
        assert_eq!(unit.lint(), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn ready_made_images_need_no_base() {
    let ready = "[images]\nbase = \"/b.tar\"\ncatalog = \"r.example.org/c:1\"\ndirector = \"r.example.org/d:1\"\nstorage = \"r.example.org/s:1\"\n";
    let text = format!("version = 1\n[lab]\naddress = \"h\"\n[storage]\ndir = \"/v\"\n{ready}");
    let desired = render(&model::parse(&text).unwrap(), &facts());
    assert_eq!(desired.images.len(), 3);
    assert!(desired.images.iter().all(|i| i.source == Source::Pull));
}

#[test]
fn an_image_is_named_for_what_it_is_made_of() {
    let model = model::parse(LAB).unwrap();
    let tag = |facts: &Facts| images(&model, facts).director;
    let mut other = facts();
    other.sources.insert("director", "changed".into());
    assert_ne!(tag(&facts()), tag(&other));
    other = facts();
    other.sources.insert("catalog", "changed".into());
    assert_eq!(tag(&facts()), tag(&other));
}
