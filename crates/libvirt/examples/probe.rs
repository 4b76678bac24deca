//! What libvirt, QEMU and a guest agent really do, seen through this crate.
//!
//! ```text
//! probe backup VM DIR SOCKET ROUNDS   back up every disk of a running VM to nothing, ROUNDS times
//! probe errors VM DIR SOCKET          ping, freeze and back up VM; print what comes back
//! ```
//!
//! Scratch images are made in DIR, which QEMU's user must be able to pass through; libvirt gives
//! them to that user and takes them back. The directory of SOCKET must be writable for it.
//!
//! Run it in a lab, never where a VM matters.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use libvirt::xml::{
    BackupDisk, BackupRead, BackupView, CheckpointDisk, CheckpointView, Disk, DomainView,
    backup_xml, checkpoint_xml,
};
use libvirt::{AgentTimeout, BackupFlags, Connect, Domain, Ended, JobState, XmlFlags, deadline};

const LIMIT: Duration = Duration::from_secs(40);
const AGENT: AgentTimeout = AgentTimeout::Within(Duration::from_secs(3));
const REUSE: BackupFlags = BackupFlags {
    reuse_external: true,
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let connect = Connect::open("qemu:///system").unwrap();
    match words[..] {
        ["backup", vm, dir, socket, rounds] => {
            let domain = connect.by_name(vm).unwrap();
            let version = connect.lib_version().unwrap();
            println!("libvirt {version} on {}", connect.hostname().unwrap());
            let mut frozen: Vec<Duration> = (0..rounds.parse().unwrap())
                .map(|round| back_up(&domain, dir.as_ref(), socket.as_ref(), round))
                .collect();
            frozen.sort();
            let (median, longest) = (frozen[frozen.len() / 2], frozen[frozen.len() - 1]);
            println!("frozen {rounds} times: median {median:.1?}, longest {longest:.1?}");
        }
        ["errors", vm, dir, socket] => errors(&connect, vm, dir.as_ref(), socket.as_ref()),
        _ => panic!("usage: probe backup VM DIR SOCKET ROUNDS | probe errors VM DIR SOCKET"),
    }
    println!("calls left behind: {}", deadline::left_behind());
}

/// The disks that a backup takes, with a scratch image each.
struct Job {
    disks: Vec<(Disk, PathBuf)>,
    socket: PathBuf,
}

impl Job {
    fn prepare(domain: &Domain, dir: &Path, socket: &Path) -> Self {
        let view = DomainView::parse(&domain.xml(XmlFlags::default()).unwrap()).unwrap();
        let taken = |d: &Disk| d.device == "disk" && d.source.path().is_some() && !d.readonly;
        let disks = view.disks.into_iter().filter(taken).map(|disk| {
            let bytes = domain.block_info(&disk.target).unwrap().capacity_bytes;
            let scratch = make_scratch(dir, &disk, bytes);
            (disk, scratch)
        });
        Self {
            disks: disks.collect(),
            socket: socket.into(),
        }
    }

    fn backup_xml(&self, since: Option<&str>) -> String {
        let disks: Vec<BackupDisk> = self
            .disks
            .iter()
            .map(|(disk, scratch)| BackupDisk {
                target: &disk.target,
                read: Some(BackupRead {
                    scratch,
                    export: &disk.target,
                    since: since.filter(|_| is_qcow2(disk)),
                    bitmap: "changed",
                }),
            })
            .collect();
        backup_xml(&self.socket, &disks).unwrap()
    }

    fn checkpoint_xml(&self, name: &str) -> String {
        let disks: Vec<CheckpointDisk> = self
            .disks
            .iter()
            .map(|(disk, _)| CheckpointDisk {
                target: &disk.target,
                bitmap: is_qcow2(disk).then_some(name),
            })
            .collect();
        checkpoint_xml(name, &disks).unwrap()
    }

    fn remove_scratch(&self) {
        for (_, scratch) in &self.disks {
            assert!(
                scratch.exists(),
                "libvirt removed a scratch image that was ours"
            );
            fs::remove_file(scratch).unwrap();
        }
    }
}

fn is_qcow2(disk: &Disk) -> bool {
    disk.format.as_deref() == Some("qcow2")
}

/// An empty image above the live one, so that it takes no space until the guest writes.
fn make_scratch(dir: &Path, disk: &Disk, bytes: u64) -> PathBuf {
    let scratch = dir.join(format!("{}.qcow2", disk.target));
    let live = disk.source.path().unwrap();
    let done = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-o", "extended_l2=on"])
        .args(["-u", "-b", live, "-F", disk.format.as_deref().unwrap()])
        .arg(&scratch)
        .arg(bytes.to_string())
        .status();
    assert!(done.unwrap().success());
    scratch
}

/// One backup; returns how long the guest was frozen between the freeze's return and the thaw.
fn back_up(domain: &Domain, dir: &Path, socket: &Path, round: usize) -> Duration {
    let plan = Job::prepare(domain, dir, socket);
    let name = format!("probe-{round}");
    let since = (round > 0).then(|| format!("probe-{}", round - 1));
    let backup = plan.backup_xml(since.as_deref());
    let checkpoint = plan.checkpoint_xml(&name);

    domain.set_agent_timeout(AGENT).unwrap();
    let start = Instant::now();
    let handle = domain.clone();
    let frozen = deadline::run(LIMIT, "freeze", domain.name(), move || {
        handle.fs_freeze(&[])
    });
    let asked = start.elapsed();
    let start = Instant::now();
    let handle = domain.clone();
    let job = deadline::run(LIMIT, "begin a backup of", domain.name(), move || {
        handle.backup_begin(&backup, Some(&checkpoint), REUSE)
    });
    let begun = start.elapsed();
    let start = Instant::now();
    let thawed = domain.fs_thaw();
    let thaw = start.elapsed();
    let job = job.unwrap();
    let xml = domain.backup_xml().unwrap().expect("the backup runs");
    let running = BackupView::parse(&xml).unwrap();
    assert!(running.pull && running.socket.as_deref() == socket.to_str());
    if round < 2 {
        describe(domain, socket, &running);
    }
    let start = Instant::now();
    assert_eq!(job.end().unwrap(), Ended::Now);
    println!(
        "froze {frozen:?} in {asked:.1?}, begun in {begun:.1?}, thawed {thawed:?} in {thaw:.1?}, \
         ended in {:.1?}",
        start.elapsed()
    );

    assert_eq!(domain.backup_xml().unwrap(), None);
    assert_eq!(domain.job().unwrap().state, JobState::None);
    assert!(!socket.exists(), "libvirt left its socket");
    plan.remove_scratch();
    let kept = domain
        .checkpoint(&name)
        .unwrap()
        .expect("the checkpoint stays");
    let view = CheckpointView::parse(&kept.xml().unwrap()).unwrap();
    assert_eq!((view.name, view.parent), (name, since.clone()));
    if let Some(since) = since {
        domain
            .checkpoint(&since)
            .unwrap()
            .unwrap()
            .delete()
            .unwrap();
    }
    begun
}

/// Prints what can be seen of a running backup.
fn describe(domain: &Domain, socket: &Path, running: &BackupView) {
    for disk in &running.disks {
        println!("  {disk:?}");
    }
    println!("  {:?}", domain.job().unwrap());
    let index = |d: &libvirt::xml::BackupViewDisk| Some(format!("{}[{}]", d.target, d.index?));
    let image = running
        .disks
        .iter()
        .find_map(index)
        .expect("scratch images have an index");
    domain.set_block_threshold(&image, 1 << 20).unwrap();
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let info = Command::new("nbdinfo")
        .args(["--list", &uri])
        .output()
        .unwrap();
    let exports = String::from_utf8_lossy(&info.stdout);
    let bitmaps = exports.matches("qemu:dirty-bitmap:changed").count();
    println!(
        "  {} exports, {bitmaps} with a bitmap",
        exports.matches("export=").count()
    );
}

fn errors(connect: &Connect, vm: &str, dir: &Path, socket: &Path) {
    let domain = match connect.by_name(vm) {
        Ok(domain) => domain,
        Err(error) => return println!("lookup: {:?} {}: {error}", error.kind, error.code),
    };
    println!("state {:?}", domain.state());
    let timed = |what: &str, call: &dyn Fn() -> libvirt::Result<String>| {
        let start = Instant::now();
        let answer = call();
        let took = start.elapsed();
        match answer {
            Ok(answer) => println!("{what}: {answer} after {took:.1?}"),
            Err(error) => println!(
                "{what}: {:?} {} (freeze in doubt: {}) after {took:.1?}: {error}",
                error.kind,
                error.code,
                error.leaves_freeze_in_doubt()
            ),
        }
    };
    let freeze = |mounts: &[&str]| domain.fs_freeze(mounts).map(|n| n.to_string());
    let thaw = || domain.fs_thaw().map(|n| n.to_string());
    let status = || domain.agent_command(r#"{"execute":"guest-fsfreeze-status"}"#, AGENT);
    timed("agent timeout", &|| {
        domain.set_agent_timeout(AGENT).map(|()| "set".into())
    });
    timed("ping", &|| {
        domain.agent_command(r#"{"execute":"guest-ping"}"#, AGENT)
    });
    timed("status", &status);
    timed("freeze", &|| freeze(&[]));
    timed("freeze again", &|| freeze(&[]));
    timed("status", &status);
    timed("thaw", &thaw);
    timed("thaw again", &thaw);
    timed("freeze of no mount point", &|| freeze(&["/nowhere"]));
    timed("mounts", &|| domain.mounts().map(|m| format!("{m:?}")));

    let plan = Job::prepare(&domain, dir, socket);
    let begin = |since| domain.backup_begin(&plan.backup_xml(since), None, REUSE);
    timed("abort of no job", &|| {
        domain.abort_job().map(|()| "aborted".into())
    });
    timed("backup since nothing", &|| {
        begin(Some("nothing")).map(|_| "begun".into())
    });
    timed("two backups", &|| {
        let first = begin(None)?;
        timed("  the second", &|| begin(None).map(|_| "begun".into()));
        first.end().map(|ended| format!("first ended {ended:?}"))
    });
    timed("backup after the guest stopped", &|| {
        let first = begin(None)?;
        domain.destroy()?;
        timed("  state", &|| domain.state().map(|s| format!("{s:?}")));
        first.end().map(|ended| format!("ended {ended:?}"))
    });
    timed("backup XML", &|| {
        domain.backup_xml().map(|xml| format!("{xml:?}"))
    });
    plan.remove_scratch();
    timed("checkpoint", &|| {
        domain.checkpoint("none").map(|c| format!("{c:?}"))
    });
    timed("start", &|| domain.create().map(|()| "started".into()));
    timed("start again", &|| {
        domain.create().map(|()| "started".into())
    });
    timed("last job", &|| {
        domain.last_job().map(|job| format!("{job:?}"))
    });
}
