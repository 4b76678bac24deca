//! Kernel and initial RAM disk of a VM that boots them directly.
//!
//! They are files of the host that nobody writes while a VM runs, except by replacing them whole, so
//! they are read after libvirt's job has ended: the guest does not wait for them.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libvirt::xml::DomainView;

use crate::manifest::Boot;

/// Largest kernel or initial RAM disk in bytes.
pub(crate) const MAX_BOOT: u64 = 128 << 20;

/// What the definition boots. Looks at every file, so that what is too large is known before the
/// guest is touched.
pub(super) fn files(view: &DomainView) -> Result<Vec<Boot>> {
    let mut boot = Vec::new();
    for (file, path) in [("kernel", &view.kernel), ("initrd", &view.initrd)] {
        let Some(path) = path.as_deref().map(str::trim).filter(|p| !p.is_empty()) else {
            continue;
        };
        open(file, Path::new(path))?;
        boot.push(Boot {
            file: file.into(),
            source: path.into(),
        });
    }
    Ok(boot)
}

/// Opens one and tells its size.
fn open(what: &str, path: &Path) -> Result<(File, std::fs::Metadata)> {
    // Looked at first: opening a pipe would wait.
    let known = std::fs::metadata(path)
        .with_context(|| format!("cannot look at the {what} {}", path.display()))?;
    ensure!(
        known.is_file(),
        "the {what} {} is no regular file",
        path.display()
    );
    let file =
        File::open(path).with_context(|| format!("cannot read the {what} {}", path.display()))?;
    let facts = file.metadata()?;
    ensure!(
        facts.len() <= MAX_BOOT,
        "the {what} {} has {} MiB, more than {}; boot the VM from its disk instead",
        path.display(),
        facts.len() >> 20,
        MAX_BOOT >> 20
    );
    Ok((file, facts))
}

/// Reads one whole.
pub(super) fn read(boot: &Boot) -> Result<Vec<u8>> {
    let path = boot.source.display();
    let (mut file, facts) = open(&boot.file, &boot.source)?;
    let mut content = Vec::with_capacity(facts.len() as usize);
    (&mut file).take(MAX_BOOT + 1).read_to_end(&mut content)?;
    let after = file.metadata()?;
    ensure!(
        content.len() as u64 == facts.len() && after.len() == facts.len(),
        "the {} {path} changed while it was read; run the backup again",
        boot.file
    );
    ensure!(
        (after.mtime(), after.mtime_nsec()) == (facts.mtime(), facts.mtime_nsec()),
        "the {} {path} was written while it was read; run the backup again",
        boot.file
    );
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_booted_is_read_and_what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinuz");
        std::fs::write(&path, "kernel").unwrap();
        let of = |kernel: &Path| {
            let xml = format!(
                "<domain><name>a</name><os><kernel>{}</kernel></os></domain>",
                kernel.display()
            );
            files(&DomainView::parse(&xml).unwrap())
        };
        let found = of(&path).unwrap();
        assert_eq!((found.len(), found[0].file.as_str()), (1, "kernel"));
        assert_eq!(read(&found[0]).unwrap(), b"kernel");
        assert!(of(dir.path()).is_err());
        assert!(of(&dir.path().join("none")).is_err());
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(MAX_BOOT + 1)
            .unwrap();
        let error = of(&path).unwrap_err().to_string();
        assert!(error.contains("vmlinuz"), "{error}");
    }
}
