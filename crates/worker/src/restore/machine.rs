//! The definition of a restored VM: the stored one with as few changes as possible.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use libvirt::xml::{DomainView, Edits};

use super::target::Machine;
use crate::session::Line;

/// Edits the stored XML for the place and identity that were decided.
pub(super) fn definition(line: &Line, vm: &str, machine: &Machine, xml: &str) -> Result<String> {
    let view = DomainView::parse(xml).context("the stored domain.xml")?;
    let mut edits = Edits::new(xml)?;
    edits.strip_id();
    edits.strip_runtime_labels();
    edits.strip_channel_sockets();
    for (target, (path, kind)) in &machine.images {
        ensure!(
            view.disk(target).is_some(),
            "the stored domain.xml has no disk {target}"
        );
        edits.set_disk_file(target, path, kind.format())?;
        edits.strip_backing_store(target)?;
    }
    if let Some(nvram) = &machine.nvram {
        edits.set_nvram(&nvram.path)?;
    }
    for boot in machine.boot.iter().filter(|boot| boot.ours) {
        match boot.file.as_str() {
            "kernel" => edits.set_kernel(&boot.path)?,
            _ => edits.set_initrd(&boot.path)?,
        }
    }
    if machine.tpm.as_ref().is_some_and(|tpm| tpm.moved) {
        edits.strip_tpm_source();
    }
    transient(machine, &view, &mut edits)?;
    network(machine, &view, &mut edits)?;
    if machine.renamed {
        rename(line, vm, machine, &view, &mut edits)?;
    }
    let xml = edits.apply()?;
    // libvirt goes by these two, and by these two it was made sure that nothing is replaced.
    let result = DomainView::parse(&xml)?;
    ensure!(
        result.name == machine.name && result.uuid.as_ref() == Some(&machine.uuid),
        "the stored domain.xml is of {:?} ({}), the manifest of {:?} ({}); nothing was put in place",
        result.name,
        result.uuid.as_deref().unwrap_or("no UUID"),
        machine.name,
        machine.uuid
    );
    Ok(xml)
}

/// A transient disk ran on an overlay that is gone by now; its image is what lay below.
fn transient(machine: &Machine, view: &DomainView, edits: &mut Edits<'_>) -> Result<()> {
    for disk in view.disks.iter().filter(|disk| disk.transient) {
        let overlay = disk
            .source
            .path()
            .is_some_and(|path| path.contains(".TRANSIENT-"));
        // What is taken out need not be put right.
        let stays = !machine.renamed || disk.readonly;
        if let (true, true, Some(below)) = (overlay, stays, disk.backing.first())
            && let Some(path) = below.source.path()
        {
            let format = below.format.as_deref().unwrap_or("raw");
            edits.set_disk_file(&disk.target, path.as_ref(), format)?;
            edits.strip_backing_store(&disk.target)?;
        }
    }
    Ok(())
}

/// Addresses and links of the network cards: a renamed VM keeps no address of the original.
fn network(machine: &Machine, view: &DomainView, edits: &mut Edits<'_>) -> Result<()> {
    for (n, interface) in view.interfaces.iter().enumerate() {
        let old = interface.mac.as_deref().unwrap_or_default();
        match machine.macs.get(old) {
            Some(mac) => edits.set_mac(n, mac)?,
            None if machine.renamed => edits.set_mac(n, &random_mac()?)?,
            None => {}
        }
        if machine.isolated {
            edits.set_link_down(n)?;
        }
    }
    Ok(())
}

/// A renamed VM shares nothing writable with the original: no name, UUID, MAC, file.
fn rename(
    line: &Line,
    vm: &str,
    machine: &Machine,
    view: &DomainView,
    edits: &mut Edits<'_>,
) -> Result<()> {
    edits.set_name(&machine.name)?;
    edits.set_uuid(&machine.uuid)?;
    let mut renamed = BTreeMap::new();
    for path in &view.console_files {
        let (dir, file) = path.rsplit_once('/').unwrap_or((".", path));
        renamed.insert(path.clone(), format!("{dir}/{}-{file}", machine.name));
    }
    edits.map_console_files(|path| renamed.get(path).cloned())?;
    for disk in &view.disks {
        if !machine.images.contains_key(&disk.target) && disk.device != "cdrom" && !disk.readonly {
            line.warn(format!(
                "{vm}/{}: not in the backup, taken out of {} so that nothing is shared",
                disk.target, machine.name
            ));
            edits.remove_disk(&disk.target)?;
        }
    }
    for shared in view.shared_dirs.iter().chain(&view.hostdevs) {
        line.warn(format!(
            "{vm}: {} still has {shared}, like the original; take it out if it must not be shared",
            machine.name
        ));
    }
    Ok(())
}

/// A random address of QEMU's range.
fn random_mac() -> Result<String> {
    let mut bytes = [0_u8; 3];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    let [a, b, c] = bytes;
    Ok(format!("52:54:00:{a:02x}:{b:02x}:{c:02x}"))
}
