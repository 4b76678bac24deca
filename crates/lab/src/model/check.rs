//! Turns each table of `lab.toml` into its part of the model and notes all that is wrong.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use relay::name;
use relay::policy::{self, Method, Quiesce};

use super::{ACCOUNT, Base, Hypervisor, Images, Storage, Tier, Vm, tier};
use crate::config;
use crate::problem::Problem;
use crate::schedule::Cycle;

/// Image that everything is built on unless `images.base` says otherwise.
const DEFAULT_BASE: &str = "docker.io/library/debian:trixie-slim";
const DEFAULT_VOLUME_BYTES: u64 = 50 << 30;
const DEFAULT_DEVICES: u32 = 4;

pub(super) struct Checker<'c> {
    pub(super) lines: &'c BTreeMap<String, usize>,
    pub(super) quiet: bool,
    pub(super) problems: Vec<Problem>,
}

impl Checker<'_> {
    pub(super) fn bad(&mut self, key: &str, reason: &str, remedy: &str) {
        // A key that did not parse has been reported with its own reason.
        let table = key.rsplit_once('.').map(|(table, _)| table);
        let told = |p: &Problem| p.key == key || Some(p.key.as_str()) == table;
        if self.quiet || self.problems.iter().any(told) {
            return;
        }
        let line = self.lines.get(key).or_else(|| self.lines.get(table?));
        self.problems.push(Problem {
            line: line.copied(),
            key: key.into(),
            reason: reason.into(),
            remedy: remedy.into(),
        });
    }

    pub(super) fn label(&mut self, key: &str, text: Option<&str>, default: &str) -> String {
        let text = text.unwrap_or(default);
        if text.is_empty() || text.len() > 100 || text.chars().any(char::is_control) {
            let reason = "is empty, longer than 100 bytes or has control characters";
            self.bad(key, reason, "write one short line of text");
        }
        text.into()
    }

    pub(super) fn required_address(&mut self, key: &str, text: Option<&str>) -> String {
        let Some(text) = text else {
            let remedy = "write the host name by which hypervisors and containers reach this host";
            self.bad(key, "is missing", remedy);
            return String::new();
        };
        self.address(key, text)
    }

    fn address(&mut self, key: &str, text: &str) -> String {
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && !l.starts_with('-')
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if text.parse::<IpAddr>().is_ok() {
            let reason =
                format!("is {text}; a container cannot reach its own host by number, only by name");
            let remedy = "write a host name; /etc/hosts of this host is enough to make one";
            self.bad(key, &reason, remedy);
        } else if text.len() > 253 || !text.split('.').all(label) {
            let reason = format!("is {text:?}, which is no host name");
            self.bad(key, &reason, "write one such as backup.example.org");
        } else if text.eq_ignore_ascii_case("localhost") {
            let reason = "is localhost, which means something else in every container";
            self.bad(key, reason, "write this host's own name");
        }
        text.into()
    }

    pub(super) fn storage(&mut self, storage: &config::Storage) -> Storage {
        let dir = storage.dir.as_deref().unwrap_or_default();
        if storage.dir.is_none() {
            let remedy = "write the directory for the volumes, such as /srv/lab-backup";
            self.bad("storage.dir", "is missing", remedy);
        } else if !plain_path(dir) || dir == "/" {
            let reason = format!("is {dir:?}, not an absolute path of A-Z a-z 0-9 . _ - only");
            self.bad("storage.dir", &reason, "write one such as /srv/lab-backup");
        }
        let volume_bytes = match storage.volume_size.as_deref().map(bytes) {
            None => DEFAULT_VOLUME_BYTES,
            Some(Some(size)) if size >= 64 << 20 => size,
            Some(_) => {
                let reason = "is not a size of at least 64 MiB";
                self.bad("storage.volume_size", reason, "write one such as \"50GiB\"");
                DEFAULT_VOLUME_BYTES
            }
        };
        let devices = storage.devices.unwrap_or(DEFAULT_DEVICES.into());
        let devices = u32::try_from(devices).ok().filter(|n| (2..=64).contains(n));
        if devices.is_none() {
            // One device would make a restore wait for a backup.
            self.bad("storage.devices", "is outside 2 to 64", "write 4");
        }
        let copy = storage.kit_copy.as_deref();
        if copy.is_some_and(|copy| Path::new(copy).starts_with(dir) && !dir.is_empty()) {
            let reason = "lies in storage.dir, where each kit is already";
            self.bad(
                "storage.kit_copy",
                reason,
                "name a place that another loss leaves",
            );
        }
        Storage {
            nfs: self.nfs(storage),
            kit_copy: copy.map(|copy| self.directory("storage.kit_copy", copy)),
            dir: dir.into(),
            volume_bytes,
            devices: devices.unwrap_or(DEFAULT_DEVICES),
        }
    }

    pub(super) fn images(&mut self, images: &config::Images) -> Images {
        let base = images.base.as_deref().unwrap_or(DEFAULT_BASE);
        let base = if base.starts_with('/') {
            if !plain_path(base) {
                let reason = format!("is {base:?}, not a path of A-Z a-z 0-9 . _ - only");
                self.bad("images.base", &reason, "move the tar file there");
            } else if !base.ends_with(".tar") && !base.ends_with(".tar.zst") {
                let reason = format!("is {base:?}, a path that ends in neither .tar nor .tar.zst");
                self.bad("images.base", &reason, "name a root file system as tar");
            }
            Base::Tar(base.into())
        } else {
            Base::Image(self.reference("images.base", base))
        };
        let mut ready = |key: &str, text: &Option<String>| {
            text.as_deref()
                .map(|text| self.reference(&format!("images.{key}"), text))
        };
        Images {
            base,
            catalog: ready("catalog", &images.catalog),
            director: ready("director", &images.director),
            storage: ready("storage", &images.storage),
        }
    }

    fn reference(&mut self, key: &str, text: &str) -> String {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"._-/:@+".contains(&b);
        // A short name would be looked up in whatever registry the host happens to search.
        let qualified = text
            .split_once('/')
            .is_some_and(|(registry, _)| registry.contains(['.', ':']) || registry == "localhost");
        if !text.bytes().all(fine) || !qualified || text.len() > 500 {
            let reason = format!("is {text:?}, not a fully qualified image reference");
            self.bad(
                key,
                &reason,
                "write one such as registry.example.org/name:tag",
            );
        }
        text.into()
    }

    pub(super) fn account(&mut self, name: Option<&str>) -> String {
        let name = name.unwrap_or(ACCOUNT);
        let legal = (1..=31).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b));
        if !legal || matches!(name, "root" | "bacula") {
            let reason = format!("is {name:?}, which is no login name of its own");
            self.bad("account.name", &reason, "leave it out, or write lab-backup");
        }
        name.into()
    }

    pub(super) fn tiers(&mut self, written: &BTreeMap<String, config::Tier>) -> BTreeMap<u8, Tier> {
        let mut tiers: BTreeMap<u8, Tier> = (0..4).map(|n| (n, tier::default(n))).collect();
        for (number, tier) in written {
            let key = format!("tiers.{number}");
            match number.parse::<u8>() {
                Ok(n) if n < 100 && n.to_string() == *number => {
                    let tier = self.tier(&key, tier::default(n), tier);
                    tiers.insert(n, tier);
                }
                _ => self.bad(&key, "is not a number from 0 to 99", "write [tiers.0]"),
            }
        }
        tiers
    }

    fn tier(&mut self, key: &str, default: Tier, tier: &config::Tier) -> Tier {
        let role = self.label(&format!("{key}.role"), tier.role.as_deref(), &default.role);
        let mut cycle = |level: &str, text: &Option<String>, default: Option<Cycle>| {
            let Some(text) = text else { return default };
            Cycle::parse(text).unwrap_or_else(|_| {
                let reason = format!("is {text:?}, not a schedule");
                let remedy = "write never, daily 01:00, weekly sun 01:00 or monthly 1st sun 01:00";
                self.bad(&format!("{key}.{level}"), &reason, remedy);
                default
            })
        };
        let full = cycle("full", &tier.full, default.full);
        let differential = cycle("differential", &tier.differential, default.differential);
        let incremental = cycle("incremental", &tier.incremental, default.incremental);
        let window_days = match tier.window.as_deref() {
            None => default.window_days,
            Some("forever") => None,
            Some(text) => text
                .strip_suffix(" days")
                .and_then(|n| n.parse().ok())
                .filter(|n| (1..=3650).contains(n))
                .or_else(|| {
                    let reason = format!("is {text:?}, not a number of days");
                    let remedy = "write \"30 days\" or \"forever\"";
                    self.bad(&format!("{key}.window"), &reason, remedy);
                    default.window_days
                }),
        };
        let lzo = match tier.compression.as_deref() {
            None | Some("none") => false,
            Some("lzo") => true,
            Some(text) => {
                let reason = format!("is {text:?}");
                let remedy = "write \"none\", or \"lzo\" and give up bextract on this tier";
                self.bad(&format!("{key}.compression"), &reason, remedy);
                false
            }
        };
        let audit_every = u32::try_from(tier.audit_every.unwrap_or(default.audit_every.into()));
        let audit_every = audit_every.ok().filter(|n| policy::AUDIT_EVERY.contains(n));
        if audit_every.is_none() {
            let remedy = "write 8, or 1 to read every disk whole each time";
            self.bad(
                &format!("{key}.audit_every"),
                "is outside 1 to 1000",
                remedy,
            );
        }
        if full.is_none() && window_days.is_some() && (differential.or(incremental)).is_some() {
            let reason = "is never, so the first Full would expire under its increments";
            let remedy = "give it a schedule, or window = \"forever\"";
            self.bad(&format!("{key}.full"), reason, remedy);
        }
        Tier {
            role,
            full,
            differential,
            incremental,
            window_days,
            lzo,
            audit_every: audit_every.unwrap_or(default.audit_every),
        }
    }

    fn directory(&mut self, key: &str, text: &str) -> PathBuf {
        if !plain_path(text) {
            let reason = format!("names {text:?}, which is no plain absolute path");
            let remedy = "write one such as /var/lib/libvirt/lab-backup/scratch";
            self.bad(key, &reason, remedy);
        }
        text.into()
    }

    pub(super) fn hypervisor(
        &mut self,
        written: &BTreeMap<String, config::Hypervisor>,
        lab: &str,
    ) -> Hypervisor {
        if written.len() > 1 {
            let reason = "has more than one entry";
            self.bad("hypervisors", reason, "keep only this host's");
        }
        let Some((name, hypervisor)) = written.first_key_value() else {
            return Hypervisor {
                name: "local".into(),
                address: lab.into(),
                policy: policy::Policy::empty(),
            };
        };
        let key = format!("hypervisors.{name}");
        if let Err(error) = name::check(name) {
            self.bad(&key, &error.to_string(), "rename it");
        }
        let address = hypervisor.address.as_deref();
        let address = address.map_or_else(
            || lab.into(),
            |text| self.address(&format!("{key}.address"), text),
        );
        let mut policy = policy::Policy::empty();
        if let Some(dir) = &hypervisor.scratch_dir {
            policy.scratch_dir = self.directory(&format!("{key}.scratch_dir"), dir);
        }
        if let Some(dirs) = &hypervisor.restore_dirs {
            let key = format!("{key}.restore_dirs");
            policy.restore_dirs = dirs.iter().map(|dir| self.directory(&key, dir)).collect();
        }
        if let Some(may) = hypervisor.restart_libvirt {
            policy.restart_libvirt = may;
        }
        Hypervisor {
            name: name.clone(),
            address,
            policy,
        }
    }

    pub(super) fn vms(
        &mut self,
        written: &BTreeMap<String, config::Vm>,
        tiers: &BTreeMap<u8, Tier>,
    ) -> BTreeMap<String, Vm> {
        let mut vms: BTreeMap<String, Vm> = BTreeMap::new();
        for (name, vm) in written {
            let key = format!("vms.{name}");
            if let Err(error) = name::check(name) {
                self.bad(&key, &error.to_string(), "rename it and set domain");
            }
            let vm = self.vm(&key, name, vm, tiers);
            let twin = vms.iter().find(|(_, other)| {
                let uuid = &vm.policy.uuid;
                other.policy.domain == vm.policy.domain
                    || (uuid.is_some() && other.policy.uuid == *uuid)
            });
            if let Some((twin, _)) = twin {
                let reason = format!("is the same machine as vms.{twin}");
                self.bad(&key, &reason, "keep one of them");
            }
            vms.insert(name.clone(), vm);
        }
        vms
    }

    fn vm(&mut self, key: &str, name: &str, vm: &config::Vm, tiers: &BTreeMap<u8, Tier>) -> Vm {
        let domain = vm.domain.as_deref().unwrap_or(name);
        if domain.is_empty() || domain.chars().any(char::is_control) || domain.contains('/') {
            let reason = "is empty or has a slash or control characters";
            let remedy = "write the name that virsh list shows";
            self.bad(&format!("{key}.domain"), reason, remedy);
        }
        if vm.uuid.as_deref().is_some_and(|uuid| !is_uuid(uuid)) {
            let remedy = "write what virsh domuuid shows";
            self.bad(&format!("{key}.uuid"), "is not a UUID", remedy);
        }
        let tier = vm.tier.and_then(|n| u8::try_from(n).ok());
        let tier = tier.filter(|n| tiers.contains_key(n)).unwrap_or_else(|| {
            let known: Vec<_> = tiers.keys().map(u8::to_string).collect();
            let remedy = format!("write one of {}", known.join(", "));
            let reason = vm.tier.map_or("is missing".into(), |n| {
                format!("is {n}, a tier that does not exist")
            });
            self.bad(&format!("{key}.tier"), &reason, &remedy);
            0
        });
        let quiesce = match vm.quiesce.as_deref() {
            None | Some("try") => Quiesce::Try,
            Some("off") => Quiesce::Off,
            Some("require") => Quiesce::Require,
            Some(text) => {
                let reason = format!("is {text:?}");
                let remedy = "write \"off\", \"try\" or \"require\"";
                self.bad(&format!("{key}.quiesce"), &reason, remedy);
                Quiesce::Try
            }
        };
        let method = match vm.method.as_deref() {
            None | Some("auto") => Method::Auto,
            Some("pull") => Method::Pull,
            Some("cold") => Method::Cold,
            Some(text) => {
                let reason = format!("is {text:?}");
                let remedy = "write \"auto\", \"pull\" or \"cold\"";
                self.bad(&format!("{key}.method"), &reason, remedy);
                Method::Auto
            }
        };
        let freeze_ms = u64::try_from(vm.freeze_ms.unwrap_or(5000)).unwrap_or(0);
        if !policy::FREEZE_MS.contains(&freeze_ms) {
            let reason = "is outside 2000 to 10000 milliseconds";
            self.bad(
                &format!("{key}.freeze_ms"),
                reason,
                "leave it out, or write 5000",
            );
        }
        let target = |t: &String| {
            (1..=16).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_alphanumeric())
        };
        if !vm.exclude.iter().all(target) {
            let remedy = "write targets such as [\"vdb\"]";
            self.bad(
                &format!("{key}.exclude"),
                "is not a list of disk targets",
                remedy,
            );
        }
        Vm {
            tier,
            policy: policy::Vm {
                domain: domain.into(),
                uuid: vm.uuid.as_ref().map(|uuid| uuid.to_ascii_lowercase()),
                quiesce,
                freeze_ms,
                method,
                audit_every: tiers.get(&tier).map_or(8, |tier| tier.audit_every),
                differentials: tiers
                    .get(&tier)
                    .is_some_and(|tier| tier.differential.is_some()),
                exclude: vm.exclude.clone(),
            },
        }
    }
}

/// An absolute path that needs no quoting in unit files, Bacula resources or `-v` arguments.
fn plain_path(text: &str) -> bool {
    let path = Path::new(text);
    path.is_absolute()
        && path
            .components()
            .all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b))
}

/// A size with a binary unit.
fn bytes(text: &str) -> Option<u64> {
    let units = [("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let (number, shift) = units
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))?;
    let number: u64 = number.trim_end().parse().ok()?;
    number.checked_mul(1 << shift)
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}
