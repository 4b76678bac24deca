//! The Quadlet units of the three containers, their network and their volumes.
//!
//! The Storage Daemon uses the host's network: backup bytes would otherwise pass a user-space
//! proxy. The Director and the catalog have a network of their own, so that neither can reach what
//! listens on the host's loopback. From there the host's main address is not reachable either
//! (pasta copies it into the containers' network), so its name is pointed at the gateway that
//! stands for the host.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::quadlet::Unit;
use super::{DIRECTOR_DIR, Facts, Images, STORAGE_DIR, root_file, storage};
use crate::desired::File;
use crate::model::Model;

/// User id of Bacula's daemons inside the images; the number that EPEL gives that account.
const BACULA: u32 = 133;
/// User id of PostgreSQL inside the images; the number that Red Hat gives that account.
const POSTGRES: u32 = 26;

/// Where podman's generator finds the account's units. Root owns them: the account that runs the
/// containers cannot change what it runs.
pub(crate) fn dir(uid: u32) -> PathBuf {
    Path::new("/etc/containers/systemd/users").join(uid.to_string())
}

/// All unit files.
pub(super) fn files(model: &Model, facts: &Facts, images: &Images) -> Vec<File> {
    let dir = dir(facts.uid);
    all(model, images)
        .into_iter()
        .map(|(name, unit)| root_file(dir.join(name), unit.text()))
        .collect()
}

/// All units by file name.
pub(super) fn all(model: &Model, images: &Images) -> Vec<(&'static str, Unit)> {
    let volume = |name: &str| Unit::default().section("Volume").set("VolumeName", name);
    vec![
        ("lab-backup-catalog.container", catalog(&images.catalog)),
        (
            "lab-backup-storage.container",
            storage_daemon(model, &images.storage),
        ),
        (
            "lab-backup-director.container",
            director(model, &images.director),
        ),
        (
            "lab-backup.network",
            Unit::default()
                .section("Network")
                .set("NetworkName", "lab-backup"),
        ),
        ("lab-backup-catalog.volume", volume("lab-backup-catalog")),
        ("lab-backup-director.volume", volume("lab-backup-director")),
        ("lab-backup-storage.volume", volume("lab-backup-storage")),
    ]
}

fn catalog(image: &str) -> Unit {
    let unit = Unit::default()
        .section("Unit")
        .set("Description", "Catalog of lab-backup (PostgreSQL)")
        // A crash loop is an alert's business; giving up would need a human.
        .set("StartLimitIntervalSec", "0");
    let unit = container(unit, "lab-backup-catalog", image, POSTGRES)
        .set("Network", "lab-backup.network")
        .set("PublishPort", "127.0.0.1:5432:5432")
        .set("Volume", "lab-backup-catalog.volume:/var/lib/postgresql")
        .set("Tmpfs", "/run/postgresql:rw,mode=1777")
        .set("ShmSize", "256m");
    service(with_secrets(unit, &["catalog"], POSTGRES))
}

fn storage_daemon(model: &Model, image: &str) -> Unit {
    let unit = Unit::default()
        .section("Unit")
        .set("Description", "Storage Daemon of lab-backup")
        .set("StartLimitIntervalSec", "0");
    let volumes = model.storage.dir.display();
    // A share gets its label from its mount; a server does not take one.
    let label = if model.storage.nfs.is_some() {
        ""
    } else {
        ",Z"
    };
    let unit = container(unit, "lab-backup-storage", image, BACULA)
        .set("Network", "host")
        // Volumes belong to the account's real user id, also on NFS.
        .set("UserNS", format!("keep-id:uid={BACULA},gid={BACULA}"))
        .set("Volume", format!("{STORAGE_DIR}:/etc/lab-backup:ro"))
        .set(
            "Volume",
            format!("{volumes}:{}:rslave{label}", storage::VOLUMES),
        )
        .set("Volume", "lab-backup-storage.volume:/var/lib/bacula");
    service(with_secrets(unit, &["storage"], BACULA))
}

fn director(model: &Model, image: &str) -> Unit {
    let unit = Unit::default()
        .section("Unit")
        .set("Description", "Director of lab-backup")
        .set("Requires", "lab-backup-catalog.service")
        .set(
            "After",
            "lab-backup-catalog.service lab-backup-storage.service",
        )
        .set("StartLimitIntervalSec", "0");
    let mut unit = container(unit, "lab-backup-director", image, BACULA)
        .set("Network", "lab-backup.network")
        .set("PublishPort", "9101:9101")
        .set("Volume", format!("{DIRECTOR_DIR}:/etc/lab-backup:ro"))
        .set("Volume", "lab-backup-director.volume:/var/lib/bacula");
    let names = BTreeSet::from([&model.address, &model.hypervisor.address]);
    for name in names {
        unit = unit.set("AddHost", format!("{name}:host-gateway"));
    }
    let secrets = super::secrets(model);
    let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
    service(with_secrets(unit, &secrets, BACULA))
}

/// What all containers have in common.
fn container(unit: Unit, name: &'static str, image: &str, user: u32) -> Unit {
    unit.section("Container")
        .set("ContainerName", name)
        .set("Image", image)
        // Images are built, loaded or pulled by apply, never while a unit starts.
        .set("Pull", "never")
        .set("User", user.to_string())
        .set("Group", user.to_string())
        .set("Environment", "TZ=UTC")
        .set("ReadOnly", "true")
        .set("NoNewPrivileges", "true")
        .set("DropCapability", "all")
        .set("LogDriver", "journald")
        .set("Notify", "healthy")
        .set("HealthCmd", "/usr/libexec/lab-backup/health")
        .set("HealthInterval", "60s")
        .set("HealthTimeout", "20s")
        .set("HealthRetries", "3")
        .set("HealthStartupCmd", "/usr/libexec/lab-backup/health")
        .set("HealthStartupInterval", "1s")
        .set("HealthStartupTimeout", "20s")
        // A missed probe must not kill running jobs.
        .set("HealthOnFailure", "none")
        .set("StopTimeout", "60")
}

fn with_secrets(unit: Unit, names: &[&str], user: u32) -> Unit {
    names.iter().fold(unit, |unit, name| {
        unit.set(
            "Secret",
            format!("lab-backup-{name},type=mount,target={name},uid={user},gid={user},mode=0400"),
        )
    })
}

fn service(unit: Unit) -> Unit {
    unit.section("Service")
        .set("Restart", "always")
        .set("RestartSec", "5")
        .set("TimeoutStartSec", "300")
        .set("TimeoutStopSec", "90")
        .section("Install")
        .set("WantedBy", "default.target")
}
