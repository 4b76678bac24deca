//! Which VM keys are legal.
//!
//! The key of a VM in `lab.toml` becomes a Bacula Job, FileSet and Client name, a directory and a
//! part of catalog paths. libvirt's own domain name is only a value under it and may be anything.

/// Why a VM key is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "VM key {key:?} {reason}; use 1 to 64 of A-Z a-z 0-9 . _ - beginning with a letter or digit"
)]
pub struct BadName {
    key: String,
    reason: &'static str,
}

/// Longest legal key, in bytes.
pub const MAX_LEN: usize = 64;

/// Checks a VM key.
pub fn check(key: &str) -> Result<(), BadName> {
    let bad = |reason| {
        Err(BadName {
            key: key.chars().take(80).collect(),
            reason,
        })
    };
    if key.is_empty() {
        return bad("is empty");
    }
    if key.len() > MAX_LEN {
        return bad("is too long");
    }
    if !key.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return bad("does not begin with a letter or digit");
    }
    if !key
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    {
        return bad("has a character that is not allowed");
    }
    if key.starts_with("lab-backup-") {
        return bad("begins with lab-backup-, which is reserved");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn keys_that_a_shell_a_path_or_a_console_could_misread_are_refused() {
        let long = "a".repeat(65);
        for key in [
            "",
            "$(id)",
            "-x",
            "a b",
            "..",
            ".a",
            "a/b",
            "a\nb",
            "é",
            "lab-backup-sd",
            &long,
        ] {
            assert!(check(key).is_err(), "{key:?}");
        }
        for key in ["a", "web01", "0", "A.b_c-d", "a..b", &"a".repeat(64)] {
            assert!(check(key).is_ok(), "{key:?}");
        }
    }
}
