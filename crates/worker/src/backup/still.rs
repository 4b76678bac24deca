//! Does a VM that is off stay off, and do its images stay as they are?

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libvirt::Domain;
use nbd::ShutdownHandle;
use rustix::fs::{major, minor};

use super::prepare::Ready;

/// Time between two looks. The last look, after everything was read, is what counts; the others only end
/// a reading early that is worth nothing any more.
const LOOK: Duration = Duration::from_millis(500);

/// What a file shows of being written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trace {
    /// Of a file: device and inode, length, the last changes of content and of inode.
    File(u64, u64, u64, (i64, i64), (i64, i64)),
    /// Of a device: its number, and how many sectors were written to it since the host started.
    Device(u64, u64),
}

fn trace(path: &Path) -> Result<Trace> {
    let facts = std::fs::metadata(path)
        .with_context(|| format!("cannot look at the image {}", path.display()))?;
    if facts.file_type().is_block_device() {
        return Ok(Trace::Device(facts.rdev(), written(&facts)?));
    }
    Ok(Trace::File(
        facts.dev(),
        facts.ino(),
        facts.len(),
        (facts.mtime(), facts.mtime_nsec()),
        (facts.ctime(), facts.ctime_nsec()),
    ))
}

/// Sectors written: field 7 of `stat` in sysfs, Documentation/block/stat.rst of the kernel.
fn written(facts: &Metadata) -> Result<u64> {
    let device = facts.rdev();
    let path = format!("/sys/dev/block/{}:{}/stat", major(device), minor(device));
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let field = text.split_ascii_whitespace().nth(6);
    field
        .and_then(|field| field.parse().ok())
        .with_context(|| format!("{path} is not understood"))
}

/// Watched until dropped.
pub(super) struct Still {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    vm: String,
    domain: Domain,
    images: Vec<(PathBuf, Trace)>,
    readers: Mutex<Vec<ShutdownHandle>>,
    over: AtomicBool,
    /// Why what was read is worth nothing.
    moved: Mutex<Option<String>>,
}

impl Still {
    /// Notes how everything is that is about to be read.
    pub(super) fn begin(ready: &Ready<'_>) -> Result<Self> {
        let disks = ready.disks.iter().zip(&ready.images);
        let paths = disks.flat_map(|(disk, image)| {
            let below = image.chain.iter().map(|below| &below.path);
            [&disk.source]
                .into_iter()
                .chain(below)
                .chain(&image.data_file)
        });
        let images = paths
            .map(|path| Ok((path.clone(), trace(path)?)))
            .collect::<Result<_>>()?;
        let shared = Arc::new(Shared {
            vm: ready.vm.into(),
            domain: ready.domain.clone(),
            images,
            readers: Mutex::default(),
            over: AtomicBool::new(false),
            moved: Mutex::default(),
        });
        shared.look()?;
        let theirs = Arc::clone(&shared);
        let builder = std::thread::Builder::new().name("still".into());
        let thread = Some(builder.spawn(move || theirs.run())?);
        Ok(Self { shared, thread })
    }

    /// Names a reader that is closed when it is in vain.
    pub(super) fn guards(&self, reader: ShutdownHandle) {
        lock(&self.shared.readers).push(reader);
    }

    /// Fails if anything moved until now.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(why) = &*lock(&self.shared.moved) {
            bail!("{why}");
        }
        self.shared.look()
    }
}

impl Shared {
    fn run(&self) {
        while !self.over.load(Ordering::Acquire) {
            if let Err(e) = self.look() {
                *lock(&self.moved) = Some(format!("{e:#}"));
                lock(&self.readers)
                    .iter()
                    .for_each(ShutdownHandle::shutdown);
                return;
            }
            std::thread::park_timeout(LOOK);
        }
    }

    fn look(&self) -> Result<()> {
        ensure!(
            !self.domain.is_active()?,
            "VM {} was started while its images were read; it is not held up, run its backup again",
            self.vm
        );
        for (path, before) in &self.images {
            ensure!(
                trace(path)? == *before,
                "somebody wrote to {} while it was read, although VM {} is off; run its backup again",
                path.display(),
                self.vm
            );
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Still {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_write_a_resize_and_another_file_show() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [1; 8192]).unwrap();
        let before = trace(&path).unwrap();
        assert_eq!(trace(&path).unwrap(), before);
        // The clock of a file system moves in steps of some milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[2], 4096).unwrap();
        let after = trace(&path).unwrap();
        assert_ne!(after, before);
        file.set_len(4096).unwrap();
        assert_ne!(trace(&path).unwrap(), after);
        let other = dir.path().join("other");
        std::fs::write(&other, [1; 8192]).unwrap();
        let theirs = trace(&other).unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(trace(&path).unwrap(), before);
        assert!(
            matches!((trace(&path).unwrap(), theirs), (Trace::File(_, a, ..), Trace::File(_, b, ..)) if a == b)
        );
        assert!(trace(&other).is_err());
    }
}
