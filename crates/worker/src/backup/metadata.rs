//! The definition of the machine at the instant of the backup.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use libvirt::xml::DomainView;
use libvirt::{Domain, XmlFlags};

use super::{Ready, choose};
use crate::manifest::Nvram;

/// Small files of the backup, in the order they are sent.
pub(super) struct Metadata {
    pub(super) files: Vec<(String, Vec<u8>)>,
    pub(super) nvram: Option<Nvram>,
}

/// Largest NVRAM file that is read, in bytes; real ones have at most 16 MiB.
const MAX_NVRAM: u64 = 64 << 20;

/// Takes the definition right after the backup began.
///
/// # Errors
/// The disks are no longer those that the backup was begun with: somebody plugged one in between.
pub(super) fn take(domain: &Domain, ready: &Ready<'_>) -> Result<Metadata> {
    let live = domain.xml(XmlFlags {
        secure: true,
        ..XmlFlags::default()
    })?;
    let view = DomainView::parse(&live)?;
    let (now, _) = choose::choose(ready.vm, &view, &ready.policy.exclude)?;
    ensure!(
        now == ready.disks,
        "the disks of VM {} changed while its backup began; run it again",
        ready.vm
    );
    let mut files = vec![("domain.xml".to_owned(), live.into_bytes())];
    if domain.is_persistent()? {
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
    let nvram = match view.nvram.and_then(|nvram| nvram.path) {
        None => None,
        Some(path) => {
            let content = read_until_stable(Path::new(&path))?;
            files.push(("nvram.fd".to_owned(), content));
            Some(Nvram {
                file: "nvram.fd".into(),
                source: path.into(),
            })
        }
    };
    Ok(Metadata { files, nvram })
}

/// Reads a file that its owner may be writing, until two copies agree.
fn read_until_stable(path: &Path) -> Result<Vec<u8>> {
    let read = || -> Result<Vec<u8>> {
        let size = std::fs::metadata(path)
            .with_context(|| format!("cannot look at the NVRAM {}", path.display()))?
            .len();
        ensure!(
            size <= MAX_NVRAM,
            "the NVRAM {} has {size} bytes",
            path.display()
        );
        std::fs::read(path).with_context(|| format!("cannot read the NVRAM {}", path.display()))
    };
    let mut last = read()?;
    for _ in 0..20 {
        let next = read()?;
        if next == last {
            return Ok(next);
        }
        last = next;
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    anyhow::bail!("the NVRAM {} changes all the time", path.display())
}
