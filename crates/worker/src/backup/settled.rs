//! Reading files that their owner may be writing: until two copies agree.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// How often it is tried, and how long is waited in between.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Reads with `read` until it brings the same twice. A read that fails is tried again as well: a file
/// may be replaced by another one at this moment.
pub(super) fn read<T: PartialEq>(what: &str, read: impl Fn() -> Result<T>) -> Result<T> {
    let mut last = read();
    for _ in 0..TRIES {
        let next = read();
        match (last, next) {
            (Ok(last), Ok(next)) if last == next => return Ok(next),
            (_, next) => last = next,
        }
        std::thread::sleep(PAUSE);
    }
    last?;
    bail!("{what} changes all the time")
}

/// Reads a regular file of at most `most` bytes.
pub(super) fn file(what: &str, path: &Path, most: u64) -> Result<Vec<u8>> {
    let facts = path
        .symlink_metadata()
        .with_context(|| format!("cannot look at {what} {}", path.display()))?;
    ensure!(
        facts.is_file(),
        "{what} {} is no regular file",
        path.display()
    );
    ensure!(
        facts.len() <= most,
        "{what} {} has {} bytes, more than {} MiB",
        path.display(),
        facts.len(),
        most >> 20
    );
    std::fs::read(path).with_context(|| format!("cannot read {what} {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn it_is_read_until_two_copies_agree() {
        let round = Cell::new(0);
        let answers = |n: i32| {
            move |round: &Cell<i32>| {
                round.set(round.get() + 1);
                ensure!(round.get() != 2, "it was replaced at that moment");
                Ok(round.get().min(n))
            }
        };
        assert_eq!(read("it", || answers(4)(&round)).unwrap(), 4);
        round.set(2);
        let error = read("it", || answers(1000)(&round)).unwrap_err();
        assert!(error.to_string().contains("changes all the time"));
    }

    #[test]
    fn what_is_no_file_or_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "123").unwrap();
        assert_eq!(file("a", &path, 3).unwrap(), b"123");
        assert!(file("a", &path, 2).is_err());
        assert!(file("a", dir.path(), 9999).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(file("a", &link, 9).is_err());
    }
}
