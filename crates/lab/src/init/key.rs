//! From names that may be anything to keys and values of `lab.toml`.

use std::collections::BTreeSet;

use relay::name;

/// A value in quotes, on one line whatever it holds.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            // What does not print could show a reader another text than the one that counts.
            c if c != '\'' && c.escape_debug().count() > 1 => {
                quoted.push_str(&format!("\\U{:08X}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A word in a remark: nothing that could end the line or turn it around.
pub(super) fn word(text: &str) -> String {
    const LONGEST: usize = 100;
    let cut = if text.chars().nth(LONGEST).is_some() {
        "…"
    } else {
        ""
    };
    let shown: String = text.chars().take(LONGEST).collect();
    format!("{}{cut}", shown.escape_debug())
}

/// A table name. A key may have dots, which would make tables of it.
pub(super) fn bare(key: &str) -> String {
    if key.contains('.') {
        quoted(key)
    } else {
        key.into()
    }
}

/// A legal key for every name, in their order, no two alike.
pub(super) fn keys(names: &[&str]) -> Vec<String> {
    // A name that is legal as it stands is nobody else's, wherever it comes.
    let legal = |name: &&&str| name::check(name).is_ok();
    let mut taken: BTreeSet<String> = names.iter().filter(legal).map(|n| (*n).into()).collect();
    let mut key = |name: &str| {
        if name::check(name).is_ok() {
            return name.to_owned();
        }
        let base = legalised(name);
        let numbered = (2..).map(|n: u32| with_suffix(&base, &format!("-{n}")));
        let mut candidates = std::iter::once(with_suffix(&base, "")).chain(numbered);
        let free = candidates.find(|key| !taken.contains(key));
        let free = free.expect("there are more numbers than names");
        taken.insert(free.clone());
        free
    };
    names.iter().map(|name| key(name)).collect()
}

fn legalised(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let mapped: String = name
        .chars()
        .map(|c| if plain(c) { c } else { '-' })
        .collect();
    let mapped = mapped.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let mapped = mapped.trim_end_matches('-');
    if mapped.is_empty() {
        return "vm".into();
    }
    // Names of jobs of our own begin like that.
    if mapped.starts_with("lab-backup-") || mapped == "lab-backup" {
        return format!("vm-{mapped}");
    }
    mapped.into()
}

fn with_suffix(base: &str, suffix: &str) -> String {
    let room = name::MAX_LEN - suffix.len();
    format!("{}{suffix}", base.get(..room).unwrap_or(base))
}
