//! `lab-backup console`

use std::path::Path;

use anyhow::Context as _;
use clap::Args;

use crate::cli::{LabFile, Usage};
use crate::exit::Exit;
use crate::model::ROLES;
use crate::render::SECRETS_DIR;

/// Prints the console configuration of a user or role: bconsole's, with the password in it.
#[derive(Debug, Args)]
pub(crate) struct Console {
    /// A name under [users], or engineer, operator, monitor
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    file: LabFile,
}

impl Console {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        let (name, model) = (&self.name, super::model(&self.file.lab)?);
        let kind = match () {
            () if model.users.contains_key(name) => "user",
            () if ROLES.iter().any(|(role, _)| role == name) => "console",
            () => {
                let known = model.users.keys().map(String::as_str);
                let known: Vec<&str> = known.chain(ROLES.map(|(role, _)| role)).collect();
                let text = format!("{name:?} has no console; there are {}", known.join(", "));
                return Err(Usage(text).into());
            }
        };
        let path = Path::new(SECRETS_DIR).join(format!("{kind}-{name}"));
        let password = std::fs::read_to_string(&path).with_context(|| {
            format!("cannot read {}; run lab-backup apply first", path.display())
        })?;
        print!(
            "# For `lab-backup --console FILE` and `bconsole -c FILE`; it holds a password: mode 0600.\n\
             Director {{\n  Name = lab-backup-dir\n  Address = \"{}\"\n  Dir Port = 9101\n  Password = \"unused\"\n  \
             TLS PSK Enable = yes\n  TLS Require = yes\n}}\n\
             Console {{\n  Name = \"{name}\"\n  Password = \"{}\"\n  TLS PSK Enable = yes\n  TLS Require = yes\n}}\n",
            model.address,
            password.trim()
        );
        Ok(Exit::Done)
    }
}
