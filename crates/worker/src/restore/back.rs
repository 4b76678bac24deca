//! The domain comes back: defined, explained, and started if asked for.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};
use libvirt::xml::DomainView;
use libvirt::{Domain, XmlFlags};

use super::allowed::OURS;
use super::target::Machine;
use super::{compare, decide, needs};
use crate::journal::{Intent, Journal};
use crate::manifest::Manifest;
use crate::session::Line;

/// A machine whose files are in place.
pub(super) struct Back<'a> {
    pub(super) line: &'a Line,
    /// The VM's key.
    pub(super) vm: &'a str,
    pub(super) machine: &'a Machine,
    /// Of the newest job.
    pub(super) manifest: Option<&'a Manifest>,
    /// The definition in the backup that the new one is made from.
    pub(super) base: &'a str,
    /// The new one.
    pub(super) xml: &'a str,
}

impl Back<'_> {
    /// Defines the domain. When this fails, the journal names what must go again.
    pub(super) fn define(&self, journal: &mut Journal) -> Result<Domain> {
        let (vm, machine) = (self.vm, self.machine);
        if let Some(tpm) = &machine.tpm {
            // As libvirt would have made it: swtpm's alone.
            std::fs::set_permissions(&tpm.dir, Permissions::from_mode(OURS))?;
            tpm.ids.own(&tpm.dir)?;
        }
        // It may have come while the data did.
        decide::refuse_existing(&machine.connect, &machine.name, &machine.uuid, vm)?;
        journal.intend(&Intent::Define {
            uuid: machine.uuid.clone(),
        })?;
        let domain = machine
            .connect
            .define(self.xml)
            .with_context(|| format!("cannot define VM {vm}"))?;
        self.line.info(format!(
            "{vm}: defined as {:?}, UUID {}",
            domain.name(),
            domain.uuid()
        ));
        self.autostart(&domain);
        Ok(domain)
    }

    /// A VM that starts with the host does so again; one under a new name does not.
    fn autostart(&self, domain: &Domain) {
        let (line, vm, machine) = (self.line, self.vm, self.machine);
        if !self.manifest.is_some_and(|manifest| manifest.autostart) {
            return;
        }
        if !machine.autostart {
            return line.info(format!(
                "{vm}: the original starts with the host, {:?} does not",
                machine.name
            ));
        }
        match domain.set_autostart(true) {
            Ok(()) => line.info(format!("{vm}: starts with the host")),
            Err(e) => line.warn(format!("{vm}: does not start with the host any more: {e}")),
        }
    }

    /// What follows when the restore is good, whatever this finds.
    pub(super) fn finish(&self, domain: &Domain) {
        self.explain(domain);
        let missing = self.missing();
        self.start(domain, missing);
    }

    /// Says how the definition differs from the one in the backup.
    fn explain(&self, domain: &Domain) {
        let flags = XmlFlags {
            secure: true,
            inactive: true,
            ..XmlFlags::default()
        };
        let (line, vm) = (self.line, self.vm);
        match domain.xml(flags) {
            Ok(now) => compare::report(line, vm, self.machine, self.base, &now),
            Err(e) => line.warn(format!("{vm}: the definition cannot be compared: {e}")),
        }
    }

    /// Names what the VM needs and this host does not have; how many things that are.
    fn missing(&self) -> usize {
        let recorded = self.manifest.map(|manifest| manifest.needs.clone());
        let lines = match DomainView::parse(self.xml) {
            Ok(view) => needs::missing(&self.machine.connect, &view, &recorded.unwrap_or_default()),
            Err(e) => vec![format!("what it needs is not known: {e}")],
        };
        for text in &lines {
            self.line.warn(format!("{}: {text}", self.vm));
        }
        lines.len()
    }

    fn start(&self, domain: &Domain, missing: usize) {
        let (line, name) = (self.line, &self.machine.name);
        if !self.machine.start {
            return;
        }
        if missing > 0 {
            line.warn(format!(
                "{name:?} is back and was not started: {missing} of the things that it needs are missing, see above"
            ));
            return;
        }
        // It is back, whether it starts or not: a failed start is a warning, not a failed restore.
        match domain.create() {
            Ok(()) => line.info(format!("{name:?} started")),
            Err(e) => line.warn(format!("{name:?} is back but does not start: {e}")),
        }
    }
}
