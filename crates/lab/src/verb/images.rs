//! `lab-backup images`: names of the images that `apply` expects in the account's store. Loading
//! images under these names before `apply` saves building them.

use clap::Args;

use crate::cli::LabFile;
use crate::exit::Exit;
use crate::host::ThisHost;
use crate::{observe, render};

/// Lists the container images that lab.toml asks for.
#[derive(Debug, Args)]
pub(crate) struct Images {
    #[command(flatten)]
    file: LabFile,
}

impl Images {
    /// Runs the verb.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        let model = super::model(&self.file.lab)?;
        let facts = observe::facts(&ThisHost, &model, &|_| true)?;
        for image in render::render(&model, &facts).images {
            println!("{}", image.tag);
        }
        Ok(Exit::Done)
    }
}
