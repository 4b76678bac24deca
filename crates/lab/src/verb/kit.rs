//! `lab-backup kit`

use anyhow::Context as _;
use clap::Args;

use crate::cli::LabFile;
use crate::exit::Exit;
use crate::host::ThisHost;
use crate::model::Model;
use crate::render::PASSPHRASE;
use crate::{kit, observe};

/// Writes the recovery kit: all that a blank host needs besides the volumes, sealed by a passphrase.
#[derive(Debug, Args)]
pub(crate) struct Kit {
    #[command(flatten)]
    file: LabFile,
}

impl Kit {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        let model = super::model(&self.file.lab)?;
        println!("{}", write(&model)?);
        Ok(Exit::Done)
    }
}

/// Writes it and says where.
pub(super) fn write(model: &Model) -> anyhow::Result<String> {
    let account = observe::login(&ThisHost, &model.account)?;
    let account = account.context("there is no account yet; run lab-backup apply first")?;
    let data = observe::director_data(&account);
    let copy = model.storage.kit_copy.as_deref();
    let written = kit::write(&ThisHost, &account, &model.storage.dir, &data, copy)
        .context("there is no new recovery kit")?;
    let catalog = match written.catalog {
        true => "with the catalog",
        false => "without a catalog yet",
    };
    Ok(format!(
        "recovery kit {}, {catalog}; its passphrase is in {PASSPHRASE}: keep a copy where the loss of this host does not reach",
        written.path.display()
    ))
}
