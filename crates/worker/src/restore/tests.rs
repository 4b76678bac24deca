use blockmap::Key;
use relay::message::{Class, Log};
use relay::proof::{Disk, Whole};

use super::*;
use crate::manifest::tests::sample;

mod backup;
use backup::Backup;

/// Of the disk: it ends in a short block, and has grown since the first job.
const SIZE: usize = 20_480 + 512;

fn warnings(log: &[Log]) -> Vec<&str> {
    let warnings = log.iter().filter(|line| line.class == Class::Warning);
    warnings.map(|line| line.text.as_str()).collect()
}

/// The count of the last line, if it claims a proof.
fn claimed(log: &[Log]) -> Option<(usize, usize)> {
    let whole = Whole::read(&log.last()?.text, "web01")?;
    Some((whole.disks, whole.files))
}

#[test]
fn a_verification_proves_every_disk_and_file_and_writes_nothing() {
    let backup = Backup::new();
    let (outcome, log) = backup.verify(None);
    assert_eq!(outcome.unwrap().files, 4);
    assert_eq!(warnings(&log), Vec::<&str>::new());
    assert_eq!(claimed(&log), Some((1, 2)));
    let root = &backup.manifests[1].disks[0].root;
    let vda = log.iter().find_map(|line| Disk::read(&line.text, "web01"));
    assert_eq!(vda.map(|disk| disk.root), Some(root.as_str()));
}

#[test]
fn the_same_parts_are_restored_by_the_same_rules() {
    let backup = Backup::new();
    let out = backup.dir.path().join("out/x");
    let (outcome, log) = backup.restore("lab-backup-restore", out.to_str().unwrap());
    outcome.unwrap();
    assert_eq!(claimed(&log), None);
    assert!(std::fs::read(out.join("web01/vda.raw")).unwrap() == backup.disk);
}

#[test]
fn a_disk_that_is_not_what_was_recorded_is_named() {
    let mut backup = Backup::new();
    backup.part("vda.raw", 1).records[0].1[5] = 9;
    let (outcome, log) = backup.verify(None);
    let error = outcome.unwrap_err();
    let root = &backup.manifests[1].disks[0].root;
    assert!(
        error.contains("web01/vda") && error.contains(root),
        "{error}"
    );
    assert_eq!(claimed(&log), None);
    // The map of the job that is still on this host knows more.
    let maps = backup.places().maps("web01");
    std::fs::create_dir_all(&maps).unwrap();
    let key: Key = backup.manifests[1].key.parse().unwrap();
    let header = blockmap::Header {
        job: "web01.8".into(),
        full_read: "web01.7".into(),
        trusting: 1,
        part_id: 8,
        delta_seq: 1,
        identity: "vda".into(),
        size: SIZE as u64,
    };
    let mut prints = Vec::new();
    blockmap::fingerprints(&key, &backup.disk, &mut prints);
    let mut map = blockmap::MapWriter::create(&maps.join("web01.8-vda.map"), &key, header).unwrap();
    map.set(0, &prints).unwrap();
    assert_eq!(map.seal().unwrap().to_string(), *root);
    let error = backup.verify(None).0.unwrap_err();
    assert!(
        error.contains("blocks that differ: 1, the first at byte 16384"),
        "{error}"
    );
}

#[test]
fn a_part_of_another_size_or_in_another_order_is_named() {
    let mut backup = Backup::new();
    backup.part("vda.raw", 0).size = SIZE + 4096;
    let error = backup.verify(None).0.unwrap_err();
    assert!(error.contains("VM web01: disk vda has"), "{error}");
    let mut backup = Backup::new();
    backup.parts.remove(0);
    let error = backup.verify(None).0.unwrap_err();
    assert!(error.contains("part 1 of disk vda came first"), "{error}");
    let mut backup = Backup::new();
    backup.parts.remove(1);
    let error = backup.verify(None).0.unwrap_err();
    assert!(error.contains("web01/vda: the newest part"), "{error}");
}

#[test]
fn a_small_file_that_is_not_what_was_recorded_is_named() {
    for file in ["domain.xml", "manifest.json"] {
        let mut backup = Backup::new();
        backup.part(file, 0).records[0].1[0] = b'[';
        let (outcome, log) = backup.verify(None);
        let error = outcome.unwrap_err();
        assert!(error.contains(&format!("web01/{file}")), "{error}");
        assert_eq!(claimed(&log), None);
    }
}

#[test]
fn what_did_not_come_is_not_proven() {
    for (file, name) in [
        ("vda.raw", "vda"),
        ("domain.xml", "domain.xml"),
        ("manifest.json", "manifest.json"),
    ] {
        let (outcome, log) = Backup::new().without(file).verify(None);
        let error = outcome.unwrap_err();
        assert!(error.contains(&format!("{name} did not come")), "{error}");
        assert_eq!(claimed(&log), None);
    }
}

#[test]
fn chosen_disks_are_proven_alone() {
    let backup = Backup::new().without("domain.xml");
    let (outcome, log) = backup.verify(Some(&["vda"]));
    outcome.unwrap();
    assert_eq!(claimed(&log), Some((1, 1)));
    let error = Backup::new().verify(Some(&["vdx"])).0.unwrap_err();
    assert!(error.contains("vdx") && error.contains("vda"), "{error}");
    let backup = Backup::new().without("vda.raw");
    assert!(backup.verify(Some(&["vda"])).0.is_err());
    assert!(Backup::new().verify(Some(&[])).0.is_err());
}

#[test]
fn without_a_manifest_nothing_is_claimed() {
    let mut backup = Backup::new();
    backup.manifests.clear();
    let (outcome, log) = backup.verify(None);
    outcome.unwrap();
    assert_eq!(claimed(&log), None);
    let warnings = warnings(&log);
    assert!(warnings.len() >= 2, "{warnings:?}");
    assert!(warnings.iter().all(|text| text.contains("unverified")));
    assert!(
        log.iter()
            .all(|line| Disk::read(&line.text, "web01").is_none())
    );
}

#[test]
fn the_job_that_verifies_never_writes() {
    let backup = Backup::new();
    let out = backup.dir.path().join("out/x");
    for place in [
        "/",
        "",
        out.to_str().unwrap(),
        "#eyJ2IjoxLCJuYW1lIjoid2ViMDIifQ",
    ] {
        let error = backup.restore("lab-backup-verify", place).0.unwrap_err();
        assert!(error.contains("writes nothing"), "{error}");
    }
    assert!(!out.exists());
    // The other job may prove, too.
    let (outcome, log) = backup.restore("lab-backup-restore", "#eyJ2IjoxLCJ2ZXJpZnkiOnRydWV9");
    outcome.unwrap();
    assert_eq!(claimed(&log), Some((1, 2)));
}

#[test]
fn only_what_is_known_to_be_little_is_let_through() {
    let little = sample();
    assert!(is_short(std::slice::from_ref(&little)));
    assert!(!is_short(&[]));
    let mut much = sample();
    much.disks[0].sent_bytes = u64::MAX;
    much.files[0].size = u64::MAX;
    assert!(!is_short(&[little, much]));
}
