//! The fingerprint key of each VM.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use blockmap::Key;

/// The key at `path`; made on first use.
///
/// It only has to be the same from job to job, so that maps can be compared. A key that is lost or
/// damaged costs a start over of every disk, no data: a new one takes its place, which is told to `say`.
pub(crate) fn load_or_create(path: &Path, say: impl FnOnce(String)) -> Result<Key> {
    let read = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).trim().parse());
    match read {
        Ok(Ok(key)) => Ok(key),
        Ok(Err(e)) => {
            let e: blockmap::Error = e;
            say(format!(
                "the fingerprint key {} is damaged and replaced: {e}",
                path.display()
            ));
            create(path).with_context(|| format!("cannot write {}", path.display()))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            create(path).with_context(|| format!("cannot write {}", path.display()))
        }
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn create(path: &Path) -> Result<Key> {
    let key = Key::random()?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir)?;
    let temp = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temp)?;
    writeln!(file, "{}", key.to_hex())?;
    file.sync_all()?;
    std::fs::rename(&temp, path)?;
    std::fs::File::open(dir)?.sync_all()?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/web01");
        let never = |text| panic!("{text}");
        let first = load_or_create(&path, never).unwrap();
        assert_eq!(
            load_or_create(&path, never).unwrap().to_hex(),
            first.to_hex()
        );
        std::fs::write(&path, b"\xff").unwrap();
        let mut said = None;
        let second = load_or_create(&path, |text| said = Some(text)).unwrap();
        assert!(said.is_some() && second.to_hex() != first.to_hex());
    }
}
