//! `lab.toml` as written.
//!
//! Nothing here is checked against anything else: [`read`] turns text into plain structs and
//! remembers on which line every key stands, so that [`crate::model`] can complain precisely.
//! Each table is read on its own, so that a slip in one does not hide the slips in the others.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::problem::Problem;

/// Where the file lives.
pub(crate) const PATH: &str = "/etc/lab-backup/lab.toml";

/// The whole file.
#[derive(Debug, Default)]
pub(crate) struct Config {
    /// Version of the file.
    pub(crate) version: Option<i64>,
    /// `[lab]`.
    pub(crate) lab: Lab,
    /// `[storage]`.
    pub(crate) storage: Storage,
    /// `[images]`.
    pub(crate) images: Images,
    /// `[alerts]`.
    pub(crate) alerts: Alerts,
    /// `[account]`.
    pub(crate) account: Account,
    /// `[tiers.N]` as named in the file.
    pub(crate) tiers: BTreeMap<String, Tier>,
    /// `[hypervisors.NAME]`.
    pub(crate) hypervisors: BTreeMap<String, Hypervisor>,
    /// `[vms.KEY]`.
    pub(crate) vms: BTreeMap<String, Vm>,
    /// `[users.NAME]`.
    pub(crate) users: BTreeMap<String, User>,
    /// Line of every key, by its dotted name.
    pub(crate) lines: BTreeMap<String, usize>,
}

/// Who this is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lab {
    /// Shown in headings.
    pub(crate) name: Option<String>,
    /// Host name or address of this host, right from everywhere.
    pub(crate) address: Option<String>,
}

/// Where volumes go.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Storage {
    /// Directory of the volumes.
    pub(crate) dir: Option<String>,
    /// What is mounted there, such as `nas.example.org:/export/lab-backup`; absent means a local directory.
    pub(crate) nfs: Option<String>,
    /// What a write does when the server is silent: `softerr`, `soft` or `hard`.
    pub(crate) nfs_mode: Option<String>,
    /// Directory that gets a copy of each recovery kit.
    pub(crate) kit_copy: Option<String>,
    /// Upper bound of a volume, such as `50GiB`.
    pub(crate) volume_size: Option<String>,
    /// Jobs that may use the storage at once.
    pub(crate) devices: Option<i64>,
}

/// What the containers are made of.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Images {
    /// Image reference, or path of a root file system as tar.
    pub(crate) base: Option<String>,
    /// Ready-made image of the catalog.
    pub(crate) catalog: Option<String>,
    /// Ready-made image of the Director.
    pub(crate) director: Option<String>,
    /// Ready-made image of the Storage Daemon.
    pub(crate) storage: Option<String>,
}

/// Who hears of jobs.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Alerts {
    /// Addresses that get mail.
    #[serde(default)]
    pub(crate) mail: Vec<String>,
    /// Of which jobs: `all`, or `problems`.
    pub(crate) on: Option<String>,
    /// Address of the sender.
    pub(crate) from: Option<String>,
    /// Mail server as `name` or `name:port`.
    pub(crate) smtp: Option<String>,
}

/// Who runs the containers.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Account {
    /// Login name.
    pub(crate) name: Option<String>,
}

/// Policy of a tier; whatever is absent comes from the default of that tier.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tier {
    /// What belongs there.
    pub(crate) role: Option<String>,
    /// When a Full runs, such as `monthly 1st sun 01:00`, or `never`.
    pub(crate) full: Option<String>,
    /// When a Differential runs.
    pub(crate) differential: Option<String>,
    /// When an Incremental runs.
    pub(crate) incremental: Option<String>,
    /// How far back a restore must reach, such as `30 days`, or `forever`.
    pub(crate) window: Option<String>,
    /// `none` or `lzo`.
    pub(crate) compression: Option<String>,
    /// Every how many increments a disk is read whole.
    pub(crate) audit_every: Option<i64>,
}

/// A host that runs VMs.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hypervisor {
    /// Host name or address; absent means `lab.address`.
    pub(crate) address: Option<String>,
    /// Local directory for scratch images.
    pub(crate) scratch_dir: Option<String>,
    /// Directories below which a restore may write.
    pub(crate) restore_dirs: Option<Vec<String>>,
    /// May a libvirt daemon that is silent over a frozen guest be restarted?
    pub(crate) restart_libvirt: Option<bool>,
}

/// A protected VM.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vm {
    /// libvirt's name; absent means the key.
    pub(crate) domain: Option<String>,
    /// libvirt's UUID.
    pub(crate) uuid: Option<String>,
    /// Number of its tier.
    pub(crate) tier: Option<i64>,
    /// `off`, `try` or `require`.
    pub(crate) quiesce: Option<String>,
    /// Longest freeze in milliseconds.
    pub(crate) freeze_ms: Option<i64>,
    /// `auto`, `pull` or `cold`.
    pub(crate) method: Option<String>,
    /// Targets that are left out.
    #[serde(default)]
    pub(crate) exclude: Vec<String>,
}

/// Somebody with a console of their own.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct User {
    /// `engineer`, `operator` or `monitor`.
    pub(crate) role: Option<String>,
    /// Keys of the VMs that they see; absent means all.
    pub(crate) vms: Option<Vec<String>>,
}

/// Reads the text of a `lab.toml`; what was not understood is in the list.
pub(crate) fn read(text: &str) -> (Config, Vec<Problem>) {
    let mut reader = Reader {
        text,
        problems: Vec::new(),
        lines: BTreeMap::new(),
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        reader.syntax(error);
    }
    let mut config = Config::default();
    // A file that is not TOML gives only noise when it is read further.
    if errors.is_empty() {
        for (key, value) in table.into_inner() {
            let line = reader.line(key.span().start);
            let key = key.into_inner().into_owned();
            reader.top(&mut config, key, line, value);
        }
    }
    config.lines = reader.lines;
    (config, reader.problems)
}

struct Reader<'t> {
    text: &'t str,
    problems: Vec<Problem>,
    lines: BTreeMap<String, usize>,
}

type Value<'t> = Spanned<DeValue<'t>>;

impl<'t> Reader<'t> {
    fn top(&mut self, config: &mut Config, key: String, line: usize, value: Value<'t>) {
        self.note(&key, line, &value);
        match key.as_str() {
            "version" => config.version = self.value(&key, line, value),
            "lab" => config.lab = self.value(&key, line, value).unwrap_or_default(),
            "storage" => config.storage = self.value(&key, line, value).unwrap_or_default(),
            "images" => config.images = self.value(&key, line, value).unwrap_or_default(),
            "alerts" => config.alerts = self.value(&key, line, value).unwrap_or_default(),
            "account" => config.account = self.value(&key, line, value).unwrap_or_default(),
            "tiers" => config.tiers = self.map(&key, line, value),
            "hypervisors" => config.hypervisors = self.map(&key, line, value),
            "vms" => config.vms = self.map(&key, line, value),
            "users" => config.users = self.map(&key, line, value),
            _ => self.problems.push(Problem::at(
                line,
                &key,
                "is not a key of lab.toml",
                "remove it; the top level knows version, lab, storage, images, alerts, account, tiers, \
                 hypervisors, vms and users",
            )),
        }
    }

    /// Remembers the lines of a value's keys, two levels down at most.
    fn note(&mut self, name: &str, line: usize, value: &Value<'t>) {
        self.lines.insert(name.to_owned(), line);
        if let DeValue::Table(table) = value.get_ref() {
            for (key, value) in table {
                let line = self.line(key.span().start);
                self.note(&format!("{name}.{}", key.get_ref()), line, value);
            }
        }
    }

    fn value<T: DeserializeOwned>(
        &mut self,
        name: &str,
        line: usize,
        value: Value<'t>,
    ) -> Option<T> {
        match T::deserialize(ValueDeserializer::from(value)) {
            Ok(value) => Some(value),
            Err(error) => {
                let line = error.span().map_or(line, |span| self.line(span.start));
                let reason = error.message().trim().replace('\n', " ");
                self.problems
                    .push(Problem::at(line, name, &reason, "correct or remove it"));
                None
            }
        }
    }

    fn map<T: DeserializeOwned + Default>(
        &mut self,
        name: &str,
        line: usize,
        value: Value<'t>,
    ) -> BTreeMap<String, T> {
        let DeValue::Table(table) = value.into_inner() else {
            let remedy = format!("write [{name}.NAME]");
            self.problems
                .push(Problem::at(line, name, "is not a table", &remedy));
            return BTreeMap::new();
        };
        let mut map = BTreeMap::new();
        for (key, value) in table {
            let line = self.line(key.span().start);
            let key = key.into_inner().into_owned();
            let name = format!("{name}.{key}");
            // An entry that is not understood stays as an empty one, so that what refers to it is
            // not reported a second time.
            map.insert(key, self.value(&name, line, value).unwrap_or_default());
        }
        map
    }

    fn syntax(&mut self, error: &toml::de::Error) {
        let line = error.span().map_or(1, |span| self.line(span.start));
        let reason = error.message().trim().replace('\n', " ");
        self.problems.push(Problem::at(
            line,
            "lab.toml",
            &reason,
            "correct the TOML on that line",
        ));
    }

    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().iter().take(at);
        1 + before.filter(|&&b| b == b'\n').count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slip_is_reported_with_its_line() {
        let text = "version = 1\ncolour = \"red\"\n[lab]\nnmae = \"x\"\n[vms.a]\ntier = \"zero\"\n[vms.b]\nteir = 1\n";
        let (_, problems) = read(text);
        let seen: Vec<_> = problems
            .iter()
            .map(|p| (p.line.unwrap(), p.key.as_str()))
            .collect();
        for wanted in [(2, "colour"), (4, "lab"), (6, "vms.a"), (8, "vms.b")] {
            assert!(seen.contains(&wanted), "{wanted:?} in {seen:?}");
        }
    }

    #[test]
    fn text_that_is_not_toml_is_reported_once_per_place() {
        let (_, problems) = read("version = = 1\n[lab\n");
        assert!(!problems.is_empty());
        assert!(problems.iter().all(|p| p.key == "lab.toml"), "{problems:?}");
    }

    #[test]
    fn lines_of_nested_keys_are_known() {
        let (config, problems) = read("version = 1\n\n[vms.web01]\ntier = 0\n");
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(config.lines.get("vms.web01.tier"), Some(&4));
        assert_eq!(config.vms["web01"].tier, Some(0));
    }
}
