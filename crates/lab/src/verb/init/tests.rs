use std::cell::RefCell;
use std::io;
use std::path::PathBuf;

use super::*;
use crate::host::Found;
use crate::process::Output;

const ONE: &str = r#"{"version":1,"hypervisor":"hv1","libvirt":"11.3.0","domains":[
    {"name":"vpn","uuid":"6f1c1b9e-0d6c-4c0a-8d5e-2b7f5c1d9a10","state":"running","persistent":true,
     "firmware":"efi","agent":true,"tpm":true,"disks":[
        {"target":"vda","device":"disk","format":"qcow2","source":"/i/a","size":42949672960}]}]}"#;

/// A host that has one file at most, a name and a worker.
struct Fake {
    file: Option<String>,
    name: &'static str,
    worker: (i32, &'static str, &'static str),
    done: RefCell<Vec<(PathBuf, u32, String)>>,
}

impl Fake {
    fn new() -> Self {
        Self {
            file: None,
            name: "hv1.example.org\n",
            worker: (0, ONE, ""),
            done: RefCell::default(),
        }
    }
}

impl Host for Fake {
    fn look(&self, path: &Path) -> io::Result<Option<Found>> {
        let there = self.file.clone().filter(|_| path.ends_with("lab.toml"));
        Ok(there.map(|text| Found {
            text,
            mode: 0o644,
            uid: 0,
        }))
    }

    fn keep(&self, _: &Path, _: &Path) -> io::Result<()> {
        unreachable!("init keeps nothing")
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        unreachable!("init renames nothing")
    }

    fn remove_dir(&self, _: &Path) -> io::Result<()> {
        unreachable!("init removes nothing")
    }

    fn remove_tree(&self, _: &Path) -> io::Result<()> {
        unreachable!("init removes nothing")
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        unreachable!("init lists nothing")
    }

    fn run(&self, run: &Run) -> io::Result<Output> {
        let argv: Vec<&str> = run.argv.iter().map(String::as_str).collect();
        let (code, stdout, stderr) = match argv.as_slice() {
            ["hostname", "-f"] => (0, self.name, ""),
            [
                "/usr/libexec/lab-backup/lab-backup-worker",
                "inventory",
                "--json",
            ] => self.worker,
            other => panic!("{other:?}"),
        };
        Ok(Output {
            code: Some(code),
            stdout: stdout.into(),
            stderr: stderr.into(),
        })
    }

    fn write(&self, path: &Path, text: &str, mode: u32) -> io::Result<()> {
        let mut done = self.done.borrow_mut();
        done.push((path.into(), mode, text.into()));
        Ok(())
    }

    fn make_dir(&self, path: &Path, mode: u32, _: (u32, u32)) -> io::Result<()> {
        let mut done = self.done.borrow_mut();
        done.push((path.into(), mode, String::new()));
        Ok(())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        unreachable!("init removes nothing")
    }
}

fn init() -> Init {
    Init {
        nfs: None,
        base: None,
        file: LabFile {
            lab: config::PATH.into(),
        },
        stdout: false,
        force: false,
        address: None,
        storage: "/srv/lab-backup".into(),
    }
}

fn error(init: &Init, host: &Fake) -> String {
    let error = format!("{:#}", init.on(host).unwrap_err());
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(host.done.borrow().is_empty(), "something was done");
    error
}

#[test]
fn the_file_and_its_directory_are_made_and_the_next_step_is_told() {
    let host = Fake::new();
    let said = init().on(&host).unwrap();
    let done = host.done.borrow();
    let [(dir, 0o755, _), (path, 0o644, text)] = done.as_slice() else {
        panic!("{done:?}");
    };
    assert_eq!(dir, Path::new("/etc/lab-backup"));
    assert_eq!(path, Path::new("/etc/lab-backup/lab.toml"));
    assert!(text.contains("\naddress = \"hv1.example.org\"\n"), "{text}");
    assert!(said.contains("1 VM, 40.0 GiB"), "{said}");
    assert!(said.ends_with("lab-backup plan\n"), "{said}");
}

#[test]
fn a_file_that_is_there_stays_unless_forced() {
    let host = Fake {
        file: Some("mine".into()),
        ..Fake::new()
    };
    let said = error(&init(), &host);
    assert!(said.contains("--stdout"), "{said}");
    let stdout = Init {
        stdout: true,
        ..init()
    };
    let text = stdout.on(&host).unwrap();
    assert!(text.contains("[vms.vpn]"), "{text}");
    assert!(host.done.borrow().is_empty());
    let force = Init {
        force: true,
        ..init()
    };
    force.on(&host).unwrap();
    let written = host.done.borrow();
    assert_eq!(written.last().map(|(_, _, text)| text), Some(&text));
}

#[test]
fn another_file_gets_no_directory_and_is_named_in_the_next_step() {
    let host = Fake::new();
    let other = Init {
        file: LabFile {
            lab: "/x/lab.toml".into(),
        },
        ..init()
    };
    let said = other.on(&host).unwrap();
    assert!(
        said.ends_with("lab-backup plan --lab /x/lab.toml\n"),
        "{said}"
    );
    assert_eq!(host.done.borrow().len(), 1);
}

#[test]
fn a_host_without_a_name_of_its_own_is_told_how_to_give_one() {
    for name in ["", "localhost", "localhost.localdomain", "10.0.0.1", "a b"] {
        let host = Fake {
            name,
            ..Fake::new()
        };
        let said = error(&init(), &host);
        assert!(said.contains("--address NAME"), "{said}");
        let named = Init {
            address: Some("backup.example.org".into()),
            ..init()
        };
        named.on(&host).unwrap();
    }
}

#[test]
fn options_that_cannot_be_meant_are_named() {
    let bad = Init {
        address: Some("10.0.0.1".into()),
        ..init()
    };
    let said = error(&bad, &Fake::new());
    assert!(said.starts_with("--address is 10.0.0.1"), "{said}");
    let bad = Init {
        storage: "/srv/\"\nx".into(),
        ..init()
    };
    let said = error(&bad, &Fake::new());
    assert!(said.starts_with("--storage is "), "{said}");
}

#[test]
fn a_worker_that_fails_or_babbles_is_an_error_of_one_line() {
    for (worker, wanted) in [
        (
            (1, "", "noise\nlab-backup-worker: no libvirt\n\n"),
            "no libvirt",
        ),
        ((1, "", ""), "without a word"),
        ((0, "[", ""), "cannot understand"),
        ((0, r#"{"version":2,"domains":[]}"#, ""), "version 2"),
    ] {
        let host = Fake {
            worker,
            ..Fake::new()
        };
        let said = error(&init(), &host);
        assert!(said.contains(wanted), "{said}");
    }
}
