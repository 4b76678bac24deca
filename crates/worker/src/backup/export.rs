//! Connections to the export of one disk.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use nbd::{BASE_ALLOCATION, Client, ShutdownHandle};

/// How long QEMU may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(30);

/// The connections to the export of one disk: each context walked has one of its own, as every context
/// makes the questions about any other dearer.
#[derive(Debug)]
pub struct Export {
    pub(super) layout: Client,
    pub(super) data: Client,
    pub(super) dirty: Option<Dirty>,
}

/// The connection that tells what is dirty.
#[derive(Debug)]
pub(super) struct Dirty {
    pub(super) client: Client,
    pub(super) context: String,
}

impl Export {
    /// Connects. `bitmap` is the name of the dirty bitmap in the export, if it is wanted; `each` gets a
    /// handle of every connection.
    ///
    /// # Errors
    /// The server is not there, or has no such bitmap.
    pub fn connect(
        socket: &Path,
        export: &str,
        bitmap: Option<&str>,
        mut each: impl FnMut(ShutdownHandle),
    ) -> Result<Self> {
        let mut connect = |contexts: &[&str]| -> Result<Client> {
            let client = Client::connect(socket, export, contexts, CONNECT)?;
            each(client.shutdown_handle());
            Ok(client)
        };
        let layout = connect(&[BASE_ALLOCATION])?;
        let data = connect(&[])?;
        let dirty = bitmap
            .map(|bitmap| -> Result<Dirty> {
                let context = nbd::dirty_bitmap(bitmap);
                let client = connect(&[&context])?;
                let has = client.contexts().iter().any(|c| c.name == context);
                ensure!(has, "the export has no bitmap {bitmap}");
                Ok(Dirty { client, context })
            })
            .transpose()?;
        Ok(Self {
            layout,
            data,
            dirty,
        })
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.data.size()
    }

    /// Ends the reading from another thread.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.data.shutdown_handle()
    }

    /// Says goodbye on every connection.
    pub fn close(self) -> Result<()> {
        self.data.close()?;
        self.layout.close()?;
        if let Some(dirty) = self.dirty {
            dirty.client.close()?;
        }
        Ok(())
    }
}
