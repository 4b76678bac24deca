//! `lab-backup init`

use std::path::Path;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::cli::{LabFile, Usage};
use crate::exit::Exit;
use crate::host::{Host, Run, ThisHost};
use crate::{config, init, inventory, show};

/// Writes a lab.toml with the VMs of this host.
#[derive(Debug, Args)]
pub(crate) struct Init {
    #[command(flatten)]
    file: LabFile,
    /// Print the file instead of writing it
    #[arg(long, conflicts_with = "force")]
    stdout: bool,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    /// Host name of this host, by which everybody reaches it; without it, what hostname -f says
    #[arg(long, value_name = "NAME")]
    address: Option<String>,
    /// Directory of the volumes
    #[arg(long, value_name = "DIR", default_value = "/srv/lab-backup")]
    storage: String,
    /// Share that is mounted there
    #[arg(long, value_name = "SERVER:PATH")]
    nfs: Option<String>,
    /// What the container images are built on: an image, or a root file system as tar
    #[arg(long, value_name = "IMAGE|FILE")]
    base: Option<String>,
}

impl Init {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        print!("{}", self.on(&ThisHost)?);
        Ok(Exit::Done)
    }

    /// Does it on a host; what it says.
    fn on(&self, host: &dyn Host) -> anyhow::Result<String> {
        let path = &self.file.lab;
        let look = |path: &Path| {
            let found = host.look(path);
            found.with_context(|| format!("cannot look at {}", path.display()))
        };
        if !self.stdout && !self.force && look(path)?.is_some() {
            bail!(
                "{} is there already; edit it, or compare it with what lab-backup init --stdout prints",
                path.display()
            );
        }
        let address = self.address(host)?;
        let inventory = inventory::read(host)?;
        let mut draft = init::draft(&address, &self.storage, &inventory)?;
        if let Some(nfs) = &self.nfs {
            draft.nfs(nfs)?;
        }
        if let Some(base) = &self.base {
            draft.base(base)?;
        }
        if self.stdout {
            return Ok(draft.text);
        }
        // Only the directory of a package is made; a slip in --lab shall not make others.
        if path == Path::new(config::PATH)
            && let Some(dir) = path.parent()
            && look(dir)?.is_none()
        {
            host.make_dir(dir, 0o755, (0, 0))
                .with_context(|| format!("cannot make {}", dir.display()))?;
        }
        host.write(path, &draft.text, 0o644)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(self.summary(&draft))
    }

    /// A name that containers can use, and a directory; what is wrong with them is told before
    /// anybody waits for libvirt.
    fn address(&self, host: &dyn Host) -> anyhow::Result<String> {
        let found = match &self.address {
            Some(address) => address.clone(),
            None => own_name(host)?,
        };
        match init::model(&found, &self.storage) {
            Ok(_) => Ok(found),
            Err(init::Error::Setting(problem)) if problem.key == "lab.address" => {
                if self.address.is_none() {
                    return Err(no_name(&found));
                }
                let said = format!("--address {}; {}", problem.reason, problem.remedy);
                Err(Usage(said).into())
            }
            Err(init::Error::Setting(problem)) => {
                Err(Usage(format!("--storage {}; {}", problem.reason, problem.remedy)).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn summary(&self, draft: &init::Draft) -> String {
        let path = self.file.lab.display();
        let vms = if draft.vms == 1 { "VM" } else { "VMs" };
        let mut text = format!("{path}: {} {vms}, {}", draft.vms, show::bytes(draft.bytes));
        if draft.left_out > 0 {
            text.push_str(&format!("; {} left out, the file says why", draft.left_out));
        }
        let option = if self.file.lab == Path::new(config::PATH) {
            String::new()
        } else {
            format!(" --lab {path}")
        };
        text.push_str(&format!(
            "\nnext: check the tiers in it, then run lab-backup plan{option}\n"
        ));
        text
    }
}

/// The host's full name, if it has one of its own.
fn own_name(host: &dyn Host) -> anyhow::Result<String> {
    let output = host.run(&Run::new(&["hostname", "-f"]));
    let name = output.ok().filter(crate::process::Output::ok);
    let name = name.map(|output| output.stdout.trim().to_owned());
    match name.as_deref() {
        // Everybody's name for himself.
        None | Some("") => Err(no_name("")),
        Some(name) if name.split('.').next() == Some("localhost") => Err(no_name(name)),
        Some(name) => Ok(name.to_owned()),
    }
}

fn no_name(found: &str) -> anyhow::Error {
    let said = if found.is_empty() {
        "says nothing".into()
    } else {
        format!("says {found:?}")
    };
    anyhow::anyhow!(
        "this host has no name that others could use: hostname -f {said}; give it with --address NAME"
    )
}

#[cfg(test)]
mod tests;
