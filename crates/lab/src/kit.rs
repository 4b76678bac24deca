//! The recovery kit: what a blank host needs besides the volumes, in one file that a passphrase opens.
//!
//! It is an ordinary tar file, sealed by `gpg --symmetric`, so that stock tools open it as well. It lies beside the
//! volumes and on this host; losing either loses nothing. The dump of the catalog is at most as old as
//! the last job that saved it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};

use crate::host::{Feed, Host, Login, Run};
use crate::process::Output;
use crate::render::{BOOTSTRAPS, DUMP, KIT_DIR, PASSPHRASE, RECORD, SENTINEL};

/// Directory of the kits beside the volumes, and of those that a second place has.
pub(crate) const DIR: &str = "lab-backup-kit";
/// How many are kept there.
const KEPT: usize = 7;
/// Ends their names.
const SUFFIX: &str = ".tar.gpg";
/// Begins the names of those with a catalog.
const WHOLE: &str = "kit-";
/// Begins the names of those without one yet: they never take the place of the others.
const BARE: &str = "bare-";
/// Where a kit is opened by a recovery that is not done yet.
pub(crate) const OPENED: &str = "/var/lib/lab-backup/recover";

/// Why there is no kit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// A program cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// Its command line.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {reason}")]
    Failed {
        /// Its command line.
        program: String,
        /// What it complained about.
        reason: String,
    },
    /// Something cannot be looked at.
    #[error("cannot look at {path}", path = path.display())]
    Look {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A recovery is not done.
    #[error(
        "a recovery is not done yet, so a kit of now would lack the catalog; run lab-backup recover again, or remove {OPENED}"
    )]
    Recovering,
    /// Another one is being written.
    #[error("another kit is being written")]
    Busy,
    /// The directory is not the one that was set up.
    #[error(
        "{0} does not have the mark of this lab, so no kit is written there; is its share mounted?"
    )]
    Unmarked(String),
    /// The directory has no kit.
    #[error(
        "{0} has no recovery kit; name the directory of the volumes, or the kit itself with --kit"
    )]
    None(String),
    /// A kit does not open.
    #[error("the kit {kit} does not open: {reason}; is it the passphrase of that lab?")]
    Sealed {
        /// Which.
        kit: String,
        /// What gpg says.
        reason: String,
    },
}

/// A kit that was written.
#[derive(Debug)]
pub(crate) struct Written {
    /// Beside the volumes.
    pub(crate) path: PathBuf,
    /// When the catalog in it was dumped; none if it holds no catalog yet.
    pub(crate) catalog: bool,
}

/// Writes a kit. `volumes` is the directory of the volumes, `data` the Director's; `copy` gets one as well, by root's hand.
pub(crate) fn write(
    host: &dyn Host,
    account: &Login,
    volumes: &Path,
    data: &Path,
    copy: Option<&Path>,
) -> Result<Written, Error> {
    if there(host, Path::new(OPENED))? {
        return Err(Error::Recovering);
    }
    let _alone = alone()?;
    let mark = must_say(host, &Run::new(&["cat", "--", RECORD]))?.stdout;
    let found = by(
        &["cat", "--", &volumes.join(SENTINEL).to_string_lossy()],
        account,
    );
    if said(host, &found)?.stdout != mark {
        return Err(Error::Unmarked(volumes.display().to_string()));
    }
    let plain = Path::new(KIT_DIR).join("plain.tar");
    let sealed = Path::new(KIT_DIR).join(format!("kit{SUFFIX}"));
    let catalog = there(host, &data.join(DUMP))?;
    let packed = pack(host, data, catalog, &plain).and_then(|()| seal(host, &plain, &sealed));
    let removed = host.remove(&plain);
    packed?;
    removed.map_err(|source| Error::Look {
        path: plain,
        source,
    })?;
    let begin = if catalog { WHOLE } else { BARE };
    let name = format!(
        "{begin}{}{SUFFIX}",
        Timestamp::now().strftime("%Y%m%dT%H%M%SZ")
    );
    let path = volumes.join(DIR).join(name);
    put(host, Some(account), &sealed, &path)?;
    if let Some(copy) = copy
        && let Some(name) = path.file_name()
    {
        put(host, None, &sealed, &copy.join(name))?;
        let names = host.list(copy).map_err(|source| Error::Look {
            path: copy.into(),
            source,
        })?;
        for old in old(names.iter().map(String::as_str)) {
            let old = copy.join(old);
            host.remove(&old)
                .map_err(|source| Error::Look { path: old, source })?;
        }
    }
    let text = Path::new(KIT_DIR).join("RESTORE.txt");
    host.write(&text, RESTORE, 0o644)
        .map_err(|source| Error::Look {
            path: text.clone(),
            source,
        })?;
    put(host, Some(account), &text, &volumes.join("RESTORE.txt"))?;
    let names = names(host, account, volumes)?;
    for old in old(names.lines()) {
        let old = volumes.join(DIR).join(old);
        must(
            host,
            &by(&["rm", "--force", "--", &old.to_string_lossy()], account),
        )?;
    }
    Ok(Written { path, catalog })
}

/// Everything that only this host has, with paths from the root; the Director's own by name.
fn pack(host: &dyn Host, data: &Path, catalog: bool, plain: &Path) -> Result<(), Error> {
    let (plain, data) = (plain.to_string_lossy(), data.to_string_lossy());
    let mut argv = vec!["tar", "--create", "--file", &plain, "--directory", "/"];
    let own = [
        "etc/lab-backup/lab.toml",
        "etc/lab-backup/secrets",
        "etc/lab-backup/storage/sentinel",
        // What is known of VMs that left lab.toml.
        "etc/lab-backup/vms.toml",
        "etc/lab-backup/director/vms",
    ];
    argv.extend(own);
    if there(host, Path::new("/var/lib/lab-backup/keys"))? {
        argv.push("var/lib/lab-backup/keys");
    }
    if catalog {
        argv.extend(["--directory", &data, DUMP, BOOTSTRAPS]);
    }
    must(host, &Run::new(&argv).minutes(30))
}

fn seal(host: &dyn Host, plain: &Path, sealed: &Path) -> Result<(), Error> {
    let new = sealed.with_extension("new");
    let argv = [
        "--cipher-algo",
        "AES256",
        "--symmetric",
        "--output",
        &new.to_string_lossy(),
        &plain.to_string_lossy(),
    ];
    must(host, &gpg(Path::new(PASSPHRASE), &argv))?;
    let argv = [
        "mv",
        "--",
        &new.to_string_lossy(),
        &sealed.to_string_lossy(),
    ];
    must(host, &Run::new(&argv))
}

/// gpg without anybody's key ring or agent, with the passphrase from a file.
fn gpg(passphrase: &Path, argv: &[&str]) -> Run {
    let passphrase = passphrase.to_string_lossy();
    let mut all = vec![
        "gpg",
        "--batch",
        "--yes",
        "--quiet",
        "--no-options",
        "--homedir",
        KIT_DIR,
        // The agent would outlive us; it is only asked how slow to make a guess, which is told here.
        "--no-autostart",
        "--s2k-count",
        "65011712",
        "--pinentry-mode",
        "loopback",
        "--no-symkey-cache",
        "--passphrase-file",
        &passphrase,
    ];
    all.extend(argv);
    Run::new(&all).minutes(30)
}

/// A copy, whole or not at all; on a share by the account's hand, for root is nobody there.
fn put(host: &dyn Host, account: Option<&Login>, from: &Path, to: &Path) -> Result<(), Error> {
    let by = |argv: &[&str]| match account {
        Some(account) => by(argv, account),
        None => Run::new(argv),
    };
    if let Some(dir) = to.parent() {
        must(
            host,
            &by(&["mkdir", "--parents", "--", &dir.to_string_lossy()]),
        )?;
    }
    let (new, to) = (format!("{}.new", to.display()), to.to_string_lossy());
    let mut copy = by(&[
        "dd",
        "bs=1M",
        "conv=fsync",
        "status=none",
        &format!("of={new}"),
    ]);
    copy.stdin = Some(Feed::File(from.into()));
    must(host, &copy.minutes(30))?;
    must(host, &by(&["mv", "--", &new, &to]))
}

/// The kits that are too many, of either kind.
fn old<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
    let of = |begin| sorted(names.clone(), begin).into_iter().rev().skip(KEPT);
    [WHOLE, BARE].into_iter().flat_map(of).collect()
}

/// What lies beside the volumes.
fn names(host: &dyn Host, account: &Login, volumes: &Path) -> Result<String, Error> {
    let dir = volumes.join(DIR);
    let list = by(&["ls", "-1", "--", &dir.to_string_lossy()], account);
    Ok(must_say(host, &list)?.stdout)
}

/// One at a time: they share their temporary files.
fn alone() -> Result<File, Error> {
    let path = Path::new(KIT_DIR).join("lock");
    let file = File::create(&path).map_err(|source| Error::Look { path, source })?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| Error::Busy)?;
    Ok(file)
}

/// The kits whose names begin so, oldest first: what follows is a time.
fn sorted<'a>(names: impl Iterator<Item = &'a str>, begin: &str) -> Vec<String> {
    let mut kits: Vec<String> = names
        .filter(|name| name.starts_with(begin) && name.ends_with(SUFFIX))
        .map(str::to_owned)
        .collect();
    kits.sort();
    kits
}

/// The newest kit below a directory of volumes.
pub(crate) fn newest(host: &dyn Host, volumes: &Path) -> Result<PathBuf, Error> {
    let dir = volumes.join(DIR);
    let names = host.list(&dir).map_err(|source| Error::Look {
        path: dir.clone(),
        source,
    })?;
    let of = |begin| sorted(names.iter().map(String::as_str), begin).pop();
    let newest = of(WHOLE).or_else(|| of(BARE));
    let newest = newest.ok_or_else(|| Error::None(volumes.display().to_string()))?;
    Ok(dir.join(newest))
}

/// Opens a kit into a directory of root's.
pub(crate) fn open(
    host: &dyn Host,
    kit: &Path,
    passphrase: &Path,
    into: &Path,
) -> Result<(), Error> {
    let plain = into.join("plain.tar");
    let argv = [
        "--decrypt",
        "--output",
        &plain.to_string_lossy(),
        &kit.to_string_lossy(),
    ];
    let run = gpg(passphrase, &argv);
    let output = said(host, &run)?;
    if !output.ok() {
        return Err(Error::Sealed {
            kit: kit.display().to_string(),
            reason: complaint(&output),
        });
    }
    let argv = [
        "tar",
        "--extract",
        "--no-same-owner",
        "--file",
        &plain.to_string_lossy(),
        "--directory",
        &into.to_string_lossy(),
    ];
    must(host, &Run::new(&argv).minutes(30))?;
    host.remove(&plain).map_err(|source| Error::Look {
        path: plain,
        source,
    })
}

fn there(host: &dyn Host, path: &Path) -> Result<bool, Error> {
    let looked = host.run(&Run::new(&["test", "-e", &path.to_string_lossy()]));
    looked
        .map(|output| output.ok())
        .map_err(|source| Error::Look {
            path: path.into(),
            source,
        })
}

fn by(argv: &[&str], account: &Login) -> Run {
    Run::new(argv).login(account)
}

fn said(host: &dyn Host, run: &Run) -> Result<Output, Error> {
    host.run(run).map_err(|source| Error::Run {
        program: run.line(),
        source,
    })
}

fn must_say(host: &dyn Host, run: &Run) -> Result<Output, Error> {
    let output = said(host, run)?;
    if output.ok() {
        return Ok(output);
    }
    Err(Error::Failed {
        program: run.line(),
        reason: complaint(&output),
    })
}

fn must(host: &dyn Host, run: &Run) -> Result<(), Error> {
    must_say(host, run).map(|_| ())
}

fn complaint(output: &Output) -> String {
    output.stderr.trim().replace('\n', "; ")
}

/// What stands beside the volumes for whoever finds nothing else.
const RESTORE: &str = "\
These are volumes of Bacula 15 (https://www.bacula.org), written by lab-backup. Every disk of a virtual machine is one file in them,
/#LabBackup/VM/VM/vda.raw, beside domain.xml, nvram.fd and manifest.json. Nothing of lab-backup is needed to get them back.

With lab-backup on a new host
    lab-backup recover DIRECTORY         DIRECTORY is this one; it asks for the passphrase of the recovery kit
    lab-backup restore VM

With stock tools
 1. The recovery kit is a tar file that GnuPG opens with the lab's passphrase:
        gpg --decrypt lab-backup-kit/kit-….tar.gpg | tar --extract --verbose
    It holds lab.toml, every password, bootstrap/VM.bsr and lab-backup-catalog.sql (for: psql --dbname=bacula).
 2. Bacula's storage tools read the volumes; they need a bacula-sd.conf with a Device whose Archive Device is this directory and
    whose Media Type is lab-backup-file. With the bootstrap of a VM:
        bextract -c bacula-sd.conf -b bootstrap/VM.bsr lab-backup-file-0 /some/empty/directory
    Without a kit: bls -j lists the jobs of a volume, and bextract -V takes the volumes of a Full and of every increment after it, by age.
 3. vda.raw is then a raw disk image, and domain.xml what `virsh define` reads, once its paths are right.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kit_is_the_last_by_name() {
        let names = [
            "kit-20260102T000000Z.tar.gpg",
            "kit-20260103T000000Z.tar.gpg.new",
            "x",
            "kit-20251231T000000Z.tar.gpg",
        ];
        let kits = sorted(names.into_iter(), WHOLE);
        assert_eq!(
            kits,
            [
                "kit-20251231T000000Z.tar.gpg",
                "kit-20260102T000000Z.tar.gpg"
            ]
        );
    }
}
