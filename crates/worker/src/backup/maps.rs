//! The block maps of earlier jobs.

use std::path::PathBuf;

use super::Ready;

/// Keeps the maps of the last three jobs: last Full, previous and this one at the least.
pub(super) fn prune(ready: &Ready<'_>) {
    let dir = ready.job.places.maps(ready.vm);
    let Ok(entries) = std::fs::read_dir(&dir) else {
        return;
    };
    let mut jobs: std::collections::BTreeMap<String, Vec<PathBuf>> = Default::default();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if let Some((job, _)) = name.rsplit_once('-').filter(|_| name.ends_with(".map")) {
            jobs.entry(job.to_owned()).or_default().push(path.clone());
        }
    }
    let excess = jobs.len().saturating_sub(3);
    for path in jobs.into_values().take(excess).flatten() {
        if let Err(e) = std::fs::remove_file(&path) {
            note(&path, &e);
        }
    }
}

fn note(path: &std::path::Path, error: &std::io::Error) {
    eprintln!("cannot remove the old map {}: {error}", path.display());
}
