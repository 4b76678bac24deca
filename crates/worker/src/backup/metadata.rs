//! The definition of the machine at the instant of the backup, and the state beside its disks.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use libvirt::xml::DomainView;
use libvirt::{Connect, Domain, XmlFlags};

use super::prepare::{Ready, volume_path};
use super::tpm::{self, State};
use super::{choose, settled};
use crate::manifest::{File, Needs, Nvram, Secret, Tpm};
use crate::session::Session;
use crate::{digest, owner};

/// Small files by name.
pub(super) type Files = Vec<(String, Vec<u8>)>;

/// What was taken at the instant.
pub(super) struct Metadata {
    /// Small files, in the order they are sent.
    pub(super) files: Files,
    pub(super) nvram: Option<Nvram>,
    pub(super) tpm: Option<Tpm>,
    pub(super) autostart: bool,
    pub(super) needs: Needs,
    pub(super) snapshots: Vec<String>,
    pub(super) checkpoints: Vec<String>,
}

/// Largest NVRAM file that is read, in bytes; real ones have at most 16 MiB.
pub(crate) const MAX_NVRAM: u64 = 64 << 20;

/// Takes the definition and sends the small files.
pub(super) fn send(session: &mut Session, ready: &Ready<'_>) -> Result<Metadata> {
    let vm = ready.vm;
    let line = session.line().clone();
    let limit = line.within(super::ASK_LIMIT, format!("read the definition of {vm}"));
    let metadata = take(&ready.domain, ready)?;
    drop(limit);
    for (file, content) in &metadata.files {
        session.small_file(&super::head(vm, file, content.len() as u64), content)?;
    }
    Ok(metadata)
}

/// Takes the definition right after the backup began.
///
/// # Errors
/// The disks are no longer those that the backup was begun with: somebody plugged one in between.
fn take(domain: &Domain, ready: &Ready<'_>) -> Result<Metadata> {
    let live = domain.xml(XmlFlags {
        secure: true,
        ..XmlFlags::default()
    })?;
    let view = DomainView::parse(&live)?;
    let volume = volume_path(&ready.connect);
    let (now, _) = choose::choose(ready.vm, &view, &ready.policy.exclude, &volume)?;
    ensure!(
        now == ready.disks,
        "the disks of VM {} changed while its backup began; run it again",
        ready.vm
    );
    let mut files = vec![("domain.xml".to_owned(), live.into_bytes())];
    let persistent = domain.is_persistent()?;
    if persistent {
        let flags = XmlFlags {
            secure: true,
            inactive: true,
            ..XmlFlags::default()
        };
        files.push((
            "domain-inactive.xml".to_owned(),
            domain.xml(flags)?.into_bytes(),
        ));
    }
    let nvram = take_nvram(&view, &mut files)?;
    let tpm = take_tpm(&view, domain.uuid(), &mut files)?;
    Ok(Metadata {
        files,
        nvram,
        tpm,
        // A domain without a stored definition has none.
        autostart: persistent && domain.autostart()?,
        needs: needs(&view, &ready.connect)?,
        snapshots: domain
            .snapshots()?
            .iter()
            .map(|s| s.name().into())
            .collect(),
        checkpoints: domain
            .checkpoints()?
            .iter()
            .map(|c| c.name().into())
            .collect(),
    })
}

/// The manifest's record of a small file.
pub(super) fn record(name: &str, content: &[u8]) -> File {
    File {
        name: name.into(),
        size: content.len() as u64,
        digest: digest::of(content),
    }
}

fn take_nvram(view: &DomainView, files: &mut Files) -> Result<Option<Nvram>> {
    let Some(nvram) = &view.nvram else {
        return Ok(None);
    };
    let Some(path) = nvram.path.as_deref().map(Path::new) else {
        return Ok(None);
    };
    let content = settled::read("the NVRAM", || settled::file("the NVRAM", path, MAX_NVRAM))?;
    files.push(("nvram.fd".to_owned(), content));
    let facts = path.symlink_metadata()?;
    Ok(Some(Nvram {
        file: "nvram.fd".into(),
        source: path.into(),
        format: nvram.format.clone().unwrap_or_else(|| "raw".into()),
        owner: owner::of(&facts).context("cannot read the names of users")?,
    }))
}

fn take_tpm(view: &DomainView, uuid: &str, files: &mut Files) -> Result<Option<Tpm>> {
    match view.tpm.as_ref().map(|tpm| tpm::place(tpm, uuid)) {
        None | Some(State::NotOurs(_)) => Ok(None),
        Some(State::In {
            dir,
            version,
            chosen,
        }) => {
            let (tpm, state) = tpm::take(dir, version, chosen)?;
            files.extend(state);
            Ok(Some(tpm))
        }
    }
}

/// What of the machine no backup can hold.
pub(super) fn not_in_backup(view: &DomainView, uuid: &str) -> Vec<String> {
    let devices = view.hostdevs.iter();
    let shared = view.shared_dirs.iter();
    devices
        .map(|kind| format!("a device of the host that is passed through ({kind})"))
        .chain(shared.map(|dir| format!("the content of the shared directory {dir}")))
        .chain(
            view.tpm
                .as_ref()
                .and_then(|tpm| match tpm::place(tpm, uuid) {
                    State::NotOurs(why) => Some(why),
                    State::In { .. } => None,
                }),
        )
        .collect()
}

fn needs(view: &DomainView, connect: &Connect) -> Result<Needs> {
    let mut secrets = Vec::new();
    for secret in &view.secrets {
        let usage = match (&secret.usage, &secret.uuid) {
            (None, Some(uuid)) => connect.secret_usage(uuid)?,
            (usage, _) => usage.clone(),
        };
        secrets.push(Secret {
            uuid: secret.uuid.clone(),
            usage: usage.filter(|usage| !usage.is_empty()),
        });
    }
    let firmware = view.loader.as_ref().and_then(|loader| loader.path.as_ref());
    Ok(Needs {
        accelerator: view.kind.clone(),
        machine: view.machine.clone(),
        cpu: view.cpu_mode.clone(),
        firmware: firmware.map(Into::into),
        networks: view.networks.clone(),
        pools: view.pools.clone(),
        filters: view.filters.clone(),
        secrets,
    })
}
