//! Taking back what a job that died left behind.
//!
//! A journal says what may be there; libvirt says what is. Only what both name is touched: a backup
//! job is ended only if it serves the very socket that our journal names, a file is removed only if
//! our journal names it. The order is that of every teardown: thaw, end the job, remove files; what
//! fails leaves everything behind it as it is.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libvirt::xml::BackupView;
use libvirt::{Domain, JobState, Keep, Kind, Operation, Undefine, deadline};

use crate::agent;
use crate::backup::checkpoint;
use crate::freeze::{Guest, Trouble, thaw_within};
use crate::guard::Remote;
use crate::journal::{self as journals, Intent};
use crate::lock;
use crate::note::note;
use crate::paths::Places;

/// How long a begin of a backup may take that its worker did not see through. Below what systemd gives
/// the repair after a worker.
const BEGIN_LIMIT: Duration = Duration::from_secs(10);

/// How long libvirt may take over the end of one backup, its begin included.
const END_LIMIT: Duration = Duration::from_secs(45);
/// How long libvirt may take over anything else.
const ASK_LIMIT: Duration = Duration::from_secs(20);
/// How long another repair of the same VM is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// Domains that are asked at once.
const AT_ONCE: usize = 8;
/// How long a thaw is tried here; the guard goes on with it.
const THAW_LIMIT: Duration = Duration::from_secs(10);

/// Repairs every VM whose lock is free. Returns how many journals are left.
///
/// A journal whose VM is locked belongs to a running job and is not touched. The lock comes before the
/// first look inside: a job that begins has an empty journal for a moment. Each has a thread of its own:
/// one whose guest or libvirt hangs must not hold up the others.
pub fn all(places: &Places, say: impl FnMut(String) + Send) -> Result<usize> {
    let say = Mutex::new(say);
    let tell = |text: String| (say.lock().unwrap_or_else(PoisonError::into_inner))(text);
    let paths = journals::list(&places.journal()).context("cannot list the journals")?;
    let left = std::thread::scope(|scope| {
        let threads: Vec<_> = paths
            .iter()
            .map(|path| scope.spawn(|| one(places, path, &mut |text| tell(text))))
            .collect();
        threads
            .into_iter()
            // A panic is in the journal of the host already.
            .map(|thread| thread.join().unwrap_or(false))
            .filter(|clean| !clean)
            .count()
    });
    end_orphans(places, &tell)?;
    sweep(places)?;
    Ok(left)
}

/// Removes what belongs to processes that are gone and is in no journal: maps of unfinished restores,
/// directories of `qemu-nbd` children, which are named after their parent.
fn sweep(places: &Places) -> Result<()> {
    blockmap::sweep(&places.state.join("restore"))?;
    let entries = match std::fs::read_dir(&places.run) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.context("cannot list the run-time directory")?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let parent = name.to_str().and_then(|name| name.split_once('-'));
        let gone = parent.is_some_and(|(pid, number)| {
            let numeric = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            numeric(pid) && numeric(number) && !Path::new("/proc").join(pid).exists()
        });
        if gone && entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Repairs after one journal, unless its VM is locked; false if it is left.
fn one(places: &Places, path: &Path, say: &mut impl FnMut(String)) -> bool {
    let Some(vm) = journals::vm_of(path) else {
        say(format!("{} is no journal of ours", path.display()));
        return false;
    };
    // Two journals of one VM wait for each other.
    let _lock = match lock::take(&places.lock(&vm), &vm, "repair", LOCK_PATIENCE) {
        Ok(lock) => lock,
        Err(lock::Error::Busy { .. }) => return true,
        Err(e) => {
            say(format!("{vm}: {e}"));
            return false;
        }
    };
    // Its job may have ended meanwhile.
    if !path.exists() {
        return true;
    }
    match journal(places, path, say) {
        Ok(clean) => clean,
        Err(e) => {
            say(format!("{vm}: {e:#}"));
            false
        }
    }
}

/// Repairs what earlier jobs of `vm` left; the caller holds its lock.
pub fn of_vm(places: &Places, vm: &str, mut say: impl FnMut(String)) -> Result<()> {
    for path in journals::list(&places.journal()).context("cannot list the journals")? {
        if journals::vm_of(&path).as_deref() == Some(vm) {
            journal(places, &path, &mut say)?;
        }
    }
    Ok(())
}

/// Takes back what one journal names; the caller holds its VM's lock. False if a guest may still be
/// frozen that does not answer: then the journal stays, and stands in nobody's way.
pub fn journal(places: &Places, path: &Path, say: &mut impl FnMut(String)) -> Result<bool> {
    let intents = journals::read(path)
        .with_context(|| format!("journal {} is not readable", path.display()))?;
    let mut first = First::default();
    let thawed = intents
        .iter()
        .any(|intent| matches!(intent, Intent::Thawed { .. }));
    let mut unanswered = false;
    for intent in &intents {
        if let (Intent::Freeze { uuid }, false) = (intent, thawed) {
            match thaw(places, uuid) {
                Ok(Thaw::Proven(said)) => {
                    // A later freeze is somebody else's.
                    let uuid = uuid.clone();
                    let noted = journals::append(path, &Intent::Thawed { uuid });
                    first.keep(noted.map(|()| said).map_err(Into::into), say);
                }
                Ok(Thaw::Guarded(why)) => say(why),
                Ok(Thaw::Unanswered(why)) => {
                    unanswered = true;
                    say(why);
                }
                Err(e) => drop(first.keep(Err(e), say)),
            }
        }
    }
    // A domain or a job that is still there may use its files.
    let mut in_use = false;
    for intent in &intents {
        if let Intent::Backup { uuid, socket } = intent {
            in_use |= !first.keep(end_backup(uuid, socket), say);
        }
    }
    for intent in &intents {
        if let Intent::Checkpoint { uuid, name } = intent {
            first.keep(drop_checkpoint(uuid, name), say);
        }
    }
    let kept = intents.iter().rposition(|intent| *intent == Intent::Keep);
    let undone = || intents.iter().skip(kept.map_or(0, |at| at + 1)).rev();
    for intent in undone() {
        if let Intent::Define { uuid } = intent {
            in_use |= !first.keep(undefine(uuid), say);
        }
    }
    if !in_use {
        for intent in undone() {
            let cleared = match intent {
                Intent::File { path } => clear(path),
                Intent::Dir { path } => clear_dir(path),
                Intent::Rename { path, file } => clear_if(path, *file),
                _ => Ok(None),
            };
            first.keep(cleared, say);
        }
    }
    match first.0 {
        Some(e) => Err(e),
        None if unanswered => Ok(false),
        None => {
            std::fs::remove_file(path)?;
            Ok(true)
        }
    }
}

/// The first error; clearing up goes on after it, and later ones go to the journal of the host.
#[derive(Default)]
struct First(Option<anyhow::Error>);

impl First {
    /// Takes how a step went, and what there is to say of it; true if it went well.
    fn keep(&mut self, result: Result<Option<String>>, say: &mut impl FnMut(String)) -> bool {
        match result {
            Ok(said) => {
                if let Some(text) = said {
                    say(text);
                }
                return true;
            }
            Err(e) if self.0.is_none() => self.0 = Some(e),
            Err(e) => note!("repair: {e:#}"),
        }
        false
    }
}

/// What libvirt says of the domain, or nothing if there is none. The call has a time limit and a
/// connection of its own: whoever left this behind may have died of a libvirt that hangs.
fn on_domain<T: Send + 'static>(
    limit: Duration,
    op: &'static str,
    uuid: &str,
    call: impl FnOnce(&Domain) -> Result<T> + Send + 'static,
) -> Result<Option<T>> {
    let wanted = uuid.to_owned();
    let answer = deadline::run_on_new(agent::URI, limit, op, uuid, move |connect| {
        Ok(call(&connect.by_uuid(&wanted)?))
    });
    match answer {
        Ok(answer) => answer.map(Some),
        Err(e) if e.kind == Kind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// How a thaw went.
enum Thaw {
    /// The guest is not frozen any more, and what there is to say of it.
    Proven(Option<String>),
    /// The guard has a lease and goes on until it is.
    Guarded(String),
    /// Nobody answers who could tell, and nobody else asks.
    Unanswered(String),
}

/// Thaws a guest whose worker died over its freeze.
fn thaw(places: &Places, uuid: &str) -> Result<Thaw> {
    let guest = Remote::new(uuid, false);
    match guest.is_frozen() {
        Ok(false) | Err(Trouble::Gone | Trouble::Missing) => return Ok(Thaw::Proven(None)),
        Err(trouble @ (Trouble::Refused(_) | Trouble::Unknown(_))) => {
            // Whoever froze had a lease, and the guard keeps that until the thaw is proven, unless
            // the host was restarted since.
            let leased = places.leases().join(format!("{uuid}.json")).exists();
            let said = |who| format!("domain {uuid}: {who} answers for its thaw: {trouble}");
            return Ok(if leased {
                Thaw::Guarded(said("the guard"))
            } else {
                Thaw::Unanswered(said("the next repair"))
            });
        }
        Err(trouble @ Trouble::Away(_)) => {
            return Err(trouble)
                .with_context(|| format!("domain {uuid} is thawed when it runs again"));
        }
        Ok(true) | Err(Trouble::Lost(_)) => {}
    }
    thaw_within(&guest, THAW_LIMIT)
        .with_context(|| format!("domain {uuid} is not proven thawed; it is tried again"))?;
    Ok(Thaw::Proven(Some(format!("domain {uuid}: thawed"))))
}

/// Ends the backup jobs of this host that nobody has any more.
fn end_orphans(places: &Places, say: &(impl Fn(String) + Sync)) -> Result<()> {
    let domains = deadline::run_on_new(agent::URI, ASK_LIMIT, "list", agent::URI, |connect| {
        connect.domains()
    })?;
    // Some at a time: one that hangs must not hold up all others.
    for some in domains.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            for domain in some {
                scope.spawn(|| {
                    let (places, name) = (places.clone(), domain.name());
                    let end = move |domain: &Domain| end_orphan(domain, &places);
                    match on_domain(END_LIMIT, "end the backup of", domain.uuid(), end) {
                        Ok(Some(true)) => say(format!("{name}: ended an orphaned backup job")),
                        Ok(_) => {}
                        // A domain that went away meanwhile has no job either.
                        Err(e) => note!("repair: {name}: {e:#}"),
                    }
                });
            }
        });
    }
    Ok(())
}

/// Ends a backup job that began after its worker was dead and cleared up; true if there was one.
///
/// It serves a socket in a directory of ours that nobody keeps any more, which proves whose it is.
/// Nobody reads it, and its scratch would grow for as long as the guest writes.
pub(crate) fn end_orphan(domain: &Domain, places: &Places) -> Result<bool> {
    let Some(xml) = domain.backup_xml()? else {
        return Ok(false);
    };
    let socket = BackupView::parse(&xml)?.socket.map(PathBuf::from);
    let orphan = socket.is_some_and(|socket| {
        socket.starts_with(places.nbd()) && socket.parent().is_some_and(|room| !room.exists())
    });
    if orphan {
        domain.adopt_backup(&xml).end()?;
    }
    Ok(orphan)
}

/// What `<domainbackup>` there is. A begin whose caller died still comes into effect, so one that is
/// on its way is waited for.
fn backup_to_come(domain: &Domain) -> Result<Option<String>> {
    let start = Instant::now();
    loop {
        let xml = domain.backup_xml()?;
        let job = match domain.job() {
            Ok(job) => job,
            Err(e) if e.kind == Kind::InvalidState => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        if xml.is_some() || job.state == JobState::None {
            return Ok(xml);
        }
        if job.operation != Operation::Backup {
            return Ok(None);
        }
        anyhow::ensure!(
            start.elapsed() < BEGIN_LIMIT,
            "a backup of {} began and does not get anywhere",
            domain.name()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn end_backup(uuid: &str, socket: &Path) -> Result<Option<String>> {
    let socket = socket.to_owned();
    on_domain(END_LIMIT, "end the backup of", uuid, move |domain| {
        let Some(xml) = backup_to_come(domain)? else {
            return Ok(None);
        };
        if !serves(&xml, &socket) {
            // Somebody else's backup.
            return Ok(None);
        }
        domain.adopt_backup(&xml).end()?;
        Ok(Some(format!(
            "{}: ended the backup job that was left",
            domain.name()
        )))
    })
    .map(Option::flatten)
}

/// Removes the checkpoint of a job that failed: nobody will build on it. In a domain that is off it cannot
/// be removed; the next job that finds it running does.
fn drop_checkpoint(uuid: &str, name: &str) -> Result<Option<String>> {
    let name = name.to_owned();
    on_domain(ASK_LIMIT, "remove the checkpoint of", uuid, move |domain| {
        if domain.is_active()? {
            checkpoint::drop_one(domain, &name)?;
        }
        Ok(None)
    })
    .map(Option::flatten)
}

/// Does this `<domainbackup>` serve that socket?
fn serves(xml: &str, socket: &Path) -> bool {
    BackupView::parse(xml)
        .is_ok_and(|view| view.socket.is_some_and(|path| Path::new(&path) == socket))
}

/// Undefines a domain that an unfinished restore defined. It was not there before, says the journal.
fn undefine(uuid: &str) -> Result<Option<String>> {
    on_domain(ASK_LIMIT, "undefine", uuid, |domain| {
        anyhow::ensure!(
            !domain.is_active()?,
            "{} was started before its restore was done and keeps its images; shut it down, and it is taken back",
            domain.name()
        );
        // Its NVRAM file is a file of the journal like any other.
        let how = Undefine {
            nvram: Keep::Keep,
            ..Undefine::default()
        };
        domain.undefine(how)?;
        Ok(format!(
            "{}: undefined, its restore did not end",
            domain.name()
        ))
    })
}

/// Removes a file or an empty directory; true if it was there.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    let gone = match path.symlink_metadata() {
        Ok(facts) if facts.is_dir() => std::fs::remove_dir(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match gone {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        // Somebody put something into it: it is theirs now.
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(e) => Err(e).with_context(|| format!("cannot remove {}", path.display())),
    }
}

fn clear(path: &Path) -> Result<Option<String>> {
    Ok(remove(path)?.then(|| format!("removed {}", path.display())))
}

/// The same for a directory: a link that stands in its place is not ours.
fn clear_dir(path: &Path) -> Result<Option<String>> {
    match facts(path)? {
        Some(facts) if facts.is_dir() => clear(path),
        _ => Ok(None),
    }
}

/// The same for a name that a file of ours got, if it did.
fn clear_if(path: &Path, file: (u64, u64)) -> Result<Option<String>> {
    match facts(path)? {
        Some(facts) if (facts.dev(), facts.ino()) == file => clear(path),
        _ => Ok(None),
    }
}

/// What is at a path, links not followed.
fn facts(path: &Path) -> Result<Option<Metadata>> {
    match path.symlink_metadata() {
        Ok(facts) => Ok(Some(facts)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot look at {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(dir: &Path) -> Places {
        Places {
            run: dir.join("run"),
            state: dir.join("state"),
        }
    }

    #[test]
    fn only_the_job_that_serves_our_socket_is_ours() {
        let xml = "<domainbackup mode='pull'><server transport='unix' socket='/run/a.sock'/></domainbackup>";
        assert!(serves(xml, Path::new("/run/a.sock")));
        assert!(!serves(xml, Path::new("/run/b.sock")));
        assert!(!serves(
            "<domainbackup mode='push'/>",
            Path::new("/run/a.sock")
        ));
        assert!(!serves("", Path::new("/run/a.sock")));
    }

    #[test]
    fn rooms_of_processes_that_are_gone_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let me = format!("{}-0", std::process::id());
        // Beyond the largest number of a process: proc_sys_kernel(5), pid_max.
        for name in ["4194305-0", &me, "nbd", "leases", "4194305-x"] {
            std::fs::create_dir_all(places.run.join(name)).unwrap();
        }
        std::fs::write(places.run.join("4194305-0/socket"), "").unwrap();
        sweep(&places).unwrap();
        assert!(!places.run.join("4194305-0").exists());
        for kept in [&me, "nbd", "leases", "4194305-x"] {
            assert!(places.run.join(kept).exists(), "{kept}");
        }
    }

    #[test]
    fn files_named_before_keep_stay_and_those_after_go() {
        let dir = tempfile::tempdir().unwrap();
        let [kept, gone] = ["kept", "gone"].map(|name| dir.path().join(name));
        std::fs::write(&kept, "").unwrap();
        std::fs::write(&gone, "").unwrap();
        let mut journal = journals::Journal::begin(dir.path(), "web01", "web01.j", "").unwrap();
        journal
            .intend(&Intent::File { path: kept.clone() })
            .unwrap();
        journal.intend(&Intent::Keep).unwrap();
        journal
            .intend(&Intent::File { path: gone.clone() })
            .unwrap();
        let path = journal.path().to_path_buf();
        let places = places(dir.path());
        assert!(super::journal(&places, &path, &mut |_| {}).unwrap());
        assert!(kept.exists() && !gone.exists() && !path.exists());
    }

    #[test]
    fn a_file_that_took_our_name_stays_however_often_we_repair() {
        let dir = tempfile::tempdir().unwrap();
        let [temp, theirs, ours, link] =
            ["temp", "theirs", "ours", "link"].map(|name| dir.path().join(name));
        std::fs::write(&temp, "ours").unwrap();
        let facts = temp.metadata().unwrap();
        let file = (facts.dev(), facts.ino());
        // One name was taken by somebody else, the other we got.
        std::fs::write(&theirs, "theirs").unwrap();
        std::fs::hard_link(&temp, &ours).unwrap();
        std::os::unix::fs::symlink("/nowhere", &link).unwrap();
        let rename = |path: &PathBuf| Intent::Rename {
            path: path.clone(),
            file,
        };
        for round in ["j1", "j2"] {
            let journals = dir.path().join("journal");
            let mut journal = journals::Journal::begin(&journals, "web01", round, "").unwrap();
            for intent in [
                Intent::Dir { path: link.clone() },
                Intent::File { path: temp.clone() },
                rename(&theirs),
                rename(&ours),
            ] {
                journal.intend(&intent).unwrap();
            }
            let places = places(dir.path());
            assert!(super::journal(&places, journal.path(), &mut |_| {}).unwrap());
            assert_eq!(std::fs::read(&theirs).unwrap(), b"theirs");
            assert!(!ours.exists() && !temp.exists() && link.is_symlink());
        }
    }
}
