//! Names of users and groups: a backup keeps names, because numbers differ between hosts.
//!
//! Only the host's own files are asked. Who runs QEMU and swtpm is there; a directory service may hang.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::manifest::Owner;

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

/// Who owns what these facts are of.
pub(crate) fn of(facts: &Metadata) -> io::Result<Owner> {
    Ok(Owner {
        user: name_of(&std::fs::read_to_string(USERS)?, facts.uid()),
        group: name_of(&std::fs::read_to_string(GROUPS)?, facts.gid()),
    })
}

/// Numbers of an owner on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ids {
    /// None if this host does not know the user.
    pub(crate) user: Option<u32>,
    /// None if this host does not know the group.
    pub(crate) group: Option<u32>,
}

/// The numbers that an owner's names have on this host.
pub(crate) fn ids(owner: &Owner) -> io::Result<Ids> {
    let find = |file, name: &Option<String>| -> io::Result<Option<u32>> {
        let text = std::fs::read_to_string(file)?;
        Ok(name.as_ref().and_then(|name| id_of(&text, name)))
    };
    Ok(Ids {
        user: find(USERS, &owner.user)?,
        group: find(GROUPS, &owner.group)?,
    })
}

impl Ids {
    /// Gives a file or directory to them, links not followed; what is not known stays root's.
    pub(crate) fn own(self, path: &Path) -> io::Result<()> {
        std::os::unix::fs::lchown(path, self.user, self.group)
    }
}

/// Lines such as `name:x:number:…`.
fn lines(text: &str) -> impl Iterator<Item = (&str, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some((name, fields.nth(1)?.parse().ok()?))
    })
}

fn name_of(text: &str, id: u32) -> Option<String> {
    let found = lines(text).find(|(_, number)| *number == id);
    found.map(|(name, _)| name.to_owned())
}

fn id_of(text: &str, name: &str) -> Option<u32> {
    let found = lines(text).find(|(known, _)| *known == name);
    found.map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found_and_odd_lines_are_none() {
        let text = "root:x:0:0:root:/root:/bin/sh\n+::::::\nbroken\ntss:x:101:\n:x:7:\nodd:x:-1:\n";
        assert_eq!(name_of(text, 101).as_deref(), Some("tss"));
        assert_eq!(id_of(text, "tss"), Some(101));
        for name in ["odd", "", "ts", "broken", "+", "x"] {
            assert_eq!(id_of(text, name), None, "{name}");
        }
        assert_eq!(name_of(text, 7), None);
    }
}
