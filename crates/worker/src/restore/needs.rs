//! What a restored VM needs and this host does not have: named before the start fails on it.

use std::path::Path;

use libvirt::xml::{DomainView, SecretRef};
use libvirt::{Connect, Presence};

use crate::manifest::Needs;

/// One line for everything that is missing, each with the next step.
pub(super) fn missing(connect: &Connect, view: &DomainView, recorded: &Needs) -> Vec<String> {
    let mut lines = Vec::new();
    for name in &view.networks {
        let what = format!("network {name:?}");
        lines.extend(presence(&what, connect.network(name)));
    }
    for name in &view.pools {
        let what = format!("storage pool {name:?}");
        lines.extend(presence(&what, connect.pool(name)));
    }
    for name in &view.filters {
        let what = format!("network filter {name:?}");
        lines.extend(present(&what, connect.has_filter(name)));
    }
    for secret in &view.secrets {
        let what = describe(secret, recorded);
        lines.extend(present(&what, connect.has_secret(secret)));
    }
    if let Some(path) = view
        .loader
        .as_ref()
        .and_then(|loader| loader.path.as_deref())
    {
        lines.extend(file("firmware", path));
    }
    // Images of ours are in place by now; what is missing was never in the backup.
    for disk in view.disks.iter().filter(|disk| !disk.optional) {
        if let Some(path) = disk.source.path() {
            lines.extend(file(&format!("disk {} with its image", disk.target), path));
        }
    }
    lines
}

fn presence(what: &str, found: libvirt::Result<Presence>) -> Option<String> {
    match found {
        Ok(Presence::Active) => None,
        Ok(Presence::Inactive) => Some(format!(
            "{what} is not active on this host; start it before the start"
        )),
        Ok(Presence::Missing) => Some(define(what)),
        Err(e) => Some(format!("{what} may be missing: {e}")),
    }
}

fn present(what: &str, found: libvirt::Result<bool>) -> Option<String> {
    match found {
        Ok(true) => None,
        Ok(false) => Some(define(what)),
        Err(e) => Some(format!("{what} may be missing: {e}")),
    }
}

fn define(what: &str) -> String {
    format!("{what} is missing on this host; define it before the start")
}

fn file(what: &str, path: &str) -> Option<String> {
    let path = Path::new(path);
    (!path.exists()).then(|| {
        format!(
            "{what} {} is missing on this host; bring it back before the start",
            path.display()
        )
    })
}

/// A secret with what it is for, which only the backup knows when the secret is gone.
fn describe(secret: &SecretRef, recorded: &Needs) -> String {
    let usage = secret.usage.as_ref().or_else(|| {
        let same = recorded.secrets.iter().find(|s| s.uuid == secret.uuid);
        same.and_then(|secret| secret.usage.as_ref())
    });
    match (&secret.uuid, usage) {
        (Some(uuid), Some(usage)) => format!("secret {uuid} (usage {usage:?})"),
        (Some(uuid), None) => format!("secret {uuid}"),
        (None, Some(usage)) => format!("the secret for {usage:?}"),
        (None, None) => "a secret without a name".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Secret;

    #[test]
    fn a_secret_is_named_with_what_it_was_for() {
        let recorded = Needs {
            secrets: vec![Secret {
                uuid: Some("u1".into()),
                usage: Some("ceph client.libvirt".into()),
            }],
            ..Needs::default()
        };
        let of = |uuid: Option<&str>, usage: Option<&str>| {
            let secret = SecretRef {
                uuid: uuid.map(Into::into),
                usage: usage.map(Into::into),
                kind: None,
            };
            describe(&secret, &recorded)
        };
        assert_eq!(
            of(Some("u1"), None),
            "secret u1 (usage \"ceph client.libvirt\")"
        );
        assert_eq!(of(Some("u2"), None), "secret u2");
        assert_eq!(of(None, Some("x")), "the secret for \"x\"");
    }

    #[test]
    fn what_is_missing_is_named_with_the_next_step() {
        let lines = [
            presence("network \"a\"", Ok(Presence::Missing)),
            presence("network \"b\"", Ok(Presence::Inactive)),
            presence("network \"c\"", Ok(Presence::Active)),
            file("firmware", "/nowhere/x.fd"),
            file("firmware", "/"),
        ];
        let said: Vec<&str> = lines.iter().flatten().map(String::as_str).collect();
        assert_eq!(
            said,
            [
                "network \"a\" is missing on this host; define it before the start",
                "network \"b\" is not active on this host; start it before the start",
                "firmware /nowhere/x.fd is missing on this host; bring it back before the start",
            ]
        );
    }
}
