//! The fingerprint key of each VM.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use blockmap::Key;

/// The key at `path`; made on first use.
///
/// It only has to be the same from job to job, so that maps can be compared. A lost key costs one
/// full comparison, no data.
pub(crate) fn load_or_create(path: &Path) -> Result<Key> {
    match std::fs::read_to_string(path) {
        Ok(text) => text
            .trim()
            .parse()
            .with_context(|| format!("the fingerprint key {} is damaged", path.display())),
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
        let first = load_or_create(&path).unwrap();
        assert_eq!(load_or_create(&path).unwrap().to_hex(), first.to_hex());
    }
}
