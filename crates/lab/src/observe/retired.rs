//! VMs that `lab.toml` no longer names, and of which there are still backups.

use std::collections::BTreeMap;
use std::path::Path;

use relay::{name, policy};

use super::{Error, list, look};
use crate::host::Host;
use crate::model::{Model, Vm};
use crate::render::VMS_DIR;

/// Those whose configuration is here and whose backups are `still` in the catalog. They come from what an earlier
/// apply wrote: a slip in `lab.toml`, or a VM that is gone, must not cost the way back to its volumes.
pub(crate) fn retired(
    host: &dyn Host,
    model: &Model,
    still: &dyn Fn(&str) -> bool,
) -> Result<BTreeMap<String, Vm>, Error> {
    let mut retired = BTreeMap::new();
    let written = look(host, Path::new(policy::PATH))?;
    let written = written.and_then(|found| policy::Policy::parse(&found.text).ok());
    for file in list(host, Path::new(VMS_DIR))? {
        let Some(key) = file.strip_suffix(".conf") else {
            continue;
        };
        if name::check(key).is_err() || model.vms.contains_key(key) || !still(key) {
            continue;
        }
        let text = look(host, &Path::new(VMS_DIR).join(&file))?;
        let tier = text.as_ref().and_then(|found| tier(&found.text));
        let policy = written.as_ref().and_then(|policy| policy.vms.get(key));
        if let (Some(tier), Some(policy)) = (tier, policy)
            && model.tiers.contains_key(&tier)
        {
            let policy = policy.clone();
            retired.insert(key.to_owned(), Vm { tier, policy });
        }
    }
    Ok(retired)
}

/// The tier that a VM's configuration names.
fn tier(conf: &str) -> Option<u8> {
    conf.lines().find_map(|line| {
        let value = line.trim().strip_prefix("Job Defs = ")?;
        value.trim_matches('"').strip_prefix("tier")?.parse().ok()
    })
}
