//! A small lab, its Director, and how it is applied to a host in memory.

use std::collections::BTreeMap;

use super::MemoryHost;
use crate::apply::{Director, Error, apply};
use crate::bconsole;
use crate::model::{self, Model};
use crate::observe;
use crate::plan;
use crate::render::{self, Facts};

pub(crate) const LAB: &str = "version = 1\n[lab]\naddress = \"lab\"\n[storage]\ndir = \"/srv/v\"\n[images]\nbase = \"/base.tar\"\n";

impl Director for MemoryHost {
    fn reloaded(&self) -> Result<u64, bconsole::Error> {
        Ok(self.world.borrow().reloads)
    }

    fn reload(&self) -> Result<String, bconsole::Error> {
        self.burn("reload".into()).map_err(bconsole::Error::Run)?;
        if self.refuse.get() {
            return Ok("Please correct configuration file\n".into());
        }
        let loaded = self.under("/etc/lab-backup/director");
        let mut world = self.world.borrow_mut();
        world.loaded = loaded;
        world.reloads += 1;
        Ok(String::new())
    }
}

/// A lab with these VMs.
pub(crate) fn lab(vms: &str) -> Model {
    model::parse(&format!("{LAB}{vms}")).unwrap()
}

/// What such a host contributes.
pub(crate) fn facts() -> Facts {
    Facts {
        uid: 1000,
        plugin_dir: "/usr/lib/bacula".into(),
        fd_work_dir: "/var/lib/bacula".into(),
        secrets: render::SECRETS
            .map(|name| (name.to_owned(), format!("k{name}")))
            .into(),
        sources: BTreeMap::from([("catalog", "1".into()), ("director", "2".into())]),
        base: Some("b".into()),
        retired: BTreeMap::new(),
        director_data: "/home/lab-backup/director".into(),
        passphrase: "ksecretkit".into(),
        sentinel: "kmark".into(),
        mounted: None,
        selinux: false,
    }
}

/// One `lab-backup apply`: the number of its actions, and how it ended.
pub(crate) fn go(host: &MemoryHost, model: &Model) -> (usize, Result<(), Error>) {
    let desired = render::render(model, &facts());
    let state = observe::state(host, &desired).unwrap();
    let plan = plan::plan(&desired, &state);
    let done = apply(host, host, &desired, state, &plan, &mut |_| {});
    (plan.actions.len(), done)
}
