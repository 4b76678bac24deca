//! `lab-backup restore`
//!
//! What may be overwritten is decided by the worker on the hypervisor; this verb only says what is
//! wanted.

use clap::Args;
use relay::name;
use relay::options::{self, Options, Target};

use super::point::{Point, Request};
use super::{Vms, confirmed, run};
use crate::bconsole::Console;
use crate::cli::{DirectorArgs, Usage};
use crate::exit::Exit;
use crate::follow::{self, Watched};

/// Job that refuses to touch what exists.
const JOB: &str = "lab-backup-restore";

/// Brings a VM back.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    #[command(flatten)]
    point: Point,
    /// Bring it back beside the original, under this name, with new UUID and MAC addresses
    #[arg(long = "as", value_name = "NAME", conflicts_with = "to")]
    name: Option<String>,
    /// Write plain files into this directory of the hypervisor; nothing is defined
    #[arg(long, value_name = "DIR")]
    to: Option<String>,
    /// Start the VM when it is back
    #[arg(long, conflicts_with = "to")]
    start: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do not wait for the end
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    director: DirectorArgs,
}

impl Restore {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        let (vm, point) = (&self.point.vm, &self.point);
        let at = point.check()?;
        let place = self.place()?;
        let console = Console::with(&self.director.console);
        Vms::known(&console)?.check(std::slice::from_ref(vm))?;
        let state = point.decide(&console, at)?;
        state.show(vm);
        self.show();
        if self.dry_run {
            return Ok(Exit::Done);
        }
        if !self.yes && !confirmed()? {
            println!("nothing was done");
            return Ok(Exit::Failed);
        }
        let request = Request {
            vm,
            job: JOB,
            place: &place,
            // Without options in `where` the choice of disks is a choice of files.
            only: match self.to {
                Some(_) => &point.disks,
                None => &[],
            },
        };
        let id = state.queue(&console, request)?;
        eprintln!(
            "{vm}: restore is job {id}; to cancel it: echo 'cancel jobid={id} yes' | bconsole -c {}",
            self.director.console.display()
        );
        if self.no_wait {
            return Ok(Exit::Done);
        }
        let watched = Watched {
            id,
            client: vm,
            label: vm,
            expected: Some(state.bytes()),
        };
        let job = follow::follow(&console, watched)?;
        let exit = run::report(&console, vm, &job);
        if exit != Exit::Failed {
            println!("{}", self.next_step());
        }
        Ok(exit)
    }

    /// Bacula's `where` for what the command line asks.
    fn place(&self) -> Result<String, Usage> {
        if let Some(dir) = &self.to {
            return match Target::parse(dir) {
                Ok(Target::Directory(_)) => Ok(dir.clone()),
                _ => Err(Usage(format!(
                    "directory {:?} is not an absolute path without '..' and control characters",
                    dir.chars().take(120).collect::<String>()
                ))),
            };
        }
        if let Some(name) = &self.name {
            name::check(name).map_err(|error| {
                let text = error.to_string();
                Usage(text.replacen("VM key", "new name", 1))
            })?;
        }
        if self.name.is_none() && self.point.disks.is_empty() && !self.start {
            return Ok("/".into());
        }
        Ok(options::encode(&Options {
            v: 1,
            name: self.name.clone(),
            disks: self.point.chosen(),
            start: self.start,
            ..Options::default()
        }))
    }

    fn show(&self) {
        let disks = if self.point.disks.is_empty() {
            "all disks".to_owned()
        } else {
            self.point.disks.join(", ")
        };
        match (&self.to, &self.name) {
            (Some(dir), _) => println!("  written  {disks} as plain files below {dir}"),
            (_, Some(name)) => {
                println!("  written  {disks} under new file names");
                println!(
                    "  defined  {name}, with new UUID and MAC addresses, network cards unplugged"
                );
            }
            (None, None) => {
                println!(
                    "  written  {disks} to the original places; refused if something is there"
                );
                println!("  defined  the VM as it was; refused if it exists");
            }
        }
        if self.start {
            println!("  started  when it is back");
        }
    }

    fn next_step(&self) -> String {
        let vm = &self.point.vm;
        match (&self.to, &self.name) {
            (Some(dir), _) => format!("next: the files are below {dir} on the hypervisor"),
            (_, Some(name)) if self.start => format!("next: virsh console {name}"),
            (_, Some(name)) => format!("next: virsh start {name}"),
            (None, None) if self.start => format!("next: lab-backup run {vm}"),
            (None, None) => "next: virsh start the VM, then lab-backup run it".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        restore: Restore,
    }

    fn parse(args: &[&str]) -> Restore {
        let args = ["restore"].iter().chain(args);
        Only::try_parse_from(args).ok().unwrap().restore
    }

    fn place(args: &[&str]) -> Result<Target, String> {
        let restore = parse(args);
        let checked = restore.point.check().and_then(|_| restore.place());
        let place = checked.map_err(|e| e.to_string())?;
        Ok(Target::parse(&place).unwrap())
    }

    #[test]
    fn the_command_line_becomes_a_where_that_the_worker_reads() {
        assert_eq!(place(&["web01"]), Ok(Target::Original));
        let dir = "/srv/$(id) x";
        assert_eq!(
            place(&["web01", "--to", dir]),
            Ok(Target::Directory(dir.into()))
        );
        let Ok(Target::Rebuild(options)) =
            place(&["web01", "--as", "web02", "--disk", "vda", "--start"])
        else {
            panic!("options");
        };
        assert_eq!(options.name.as_deref(), Some("web02"));
        assert_eq!(options.disks, Some(vec!["vda".into()]));
        assert!(options.start);
        let Ok(Target::Rebuild(options)) = place(&["web01", "--disk", "vdb"]) else {
            panic!("options");
        };
        assert_eq!(options.name, None);
    }

    #[test]
    fn places_and_names_that_could_do_harm_are_refused() {
        let long = "a".repeat(200);
        for args in [
            ["web01", "--to", "srv"],
            ["web01", "--to", "/srv/../etc"],
            ["web01", "--to", "/a\nb"],
            ["web01", "--to", ""],
            ["web01", "--to", "#eyJ2IjoxfQ"],
            ["web01", "--as", "$(id)"],
            ["web01", "--as", "a b"],
            ["web01", "--as", &long],
            ["web01", "--as", "../x"],
            ["web01", "--disk", "../vda"],
        ] {
            let error = place(&args).unwrap_err();
            assert!(!error.contains('\n'), "{error:?}");
        }
    }
}
