//! The directory in which QEMU makes its NBD socket.

use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use libvirt::{Domain, XmlFlags};

/// Accounts that distributions run QEMU under, for a libvirt that does not tell.
const ACCOUNTS: [&str; 2] = ["qemu", "libvirt-qemu"];

/// The socket of a job, in a directory of its own.
pub(super) fn path(nbd: &Path, job_id: u32) -> PathBuf {
    // Short: the path of a socket has at most 107 bytes.
    nbd.join(job_id.to_string()).join("nbd.sock")
}

/// Makes the directory: QEMU's account alone may enter.
pub(super) fn make_room(dir: &Path, domain: &Domain) -> Result<()> {
    let (uid, gid) = account(domain)?;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .and_then(|()| chown(dir, Some(uid), Some(gid)))
        .with_context(|| format!("cannot make {} for QEMU", dir.display()))
}

/// Under which account the domain's QEMU runs.
fn account(domain: &Domain) -> Result<(u32, u32)> {
    let xml = domain.xml(XmlFlags::default())?;
    if let Some(ids) = dac_label(&xml) {
        return Ok(ids);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    ACCOUNTS
        .iter()
        .find_map(|name| ids_of(&passwd, name))
        .context("libvirt does not tell under which account QEMU runs")
}

/// `+64055:+994` of `<seclabel model='dac'>`.
fn dac_label(xml: &str) -> Option<(u32, u32)> {
    let document = roxmltree::Document::parse(xml).ok()?;
    let label = document
        .root_element()
        .children()
        .find(|node| node.has_tag_name("seclabel") && node.attribute("model") == Some("dac"))?
        .children()
        .find(|node| node.has_tag_name("label"))?
        .text()?;
    let (uid, gid) = label.trim().split_once(':')?;
    let number = |text: &str| text.trim_start_matches('+').parse().ok();
    Some((number(uid)?, number(gid)?))
}

fn ids_of(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let mut fields = passwd
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
        .split(':');
    let (_, uid, gid) = (fields.next()?, fields.next()?, fields.next()?);
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_of_a_running_domain_names_the_account() {
        let xml = "<domain><seclabel type='dynamic' model='dac' relabel='yes'>\
                   <label>+64055:+994</label></seclabel></domain>";
        assert_eq!(dac_label(xml), Some((64055, 994)));
        assert_eq!(dac_label("<domain/>"), None);
        let passwd = "root:x:0:0::/:\nqemu:x:107:108::/:\n";
        assert_eq!(ids_of(passwd, "qemu"), Some((107, 108)));
        assert_eq!(ids_of("qemux:x:1:1::/:\n", "qemu"), None);
    }
}
