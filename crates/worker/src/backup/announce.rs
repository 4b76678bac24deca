//! What the job log says before the guest is touched.

use super::choose::Chosen;
use super::image::Image;
use super::prepare::Ready;
use crate::session::Line;

/// Says what will be in the backup, and what of the machine will not.
pub(super) fn announce(line: &Line, ready: &Ready<'_>) {
    let vm = ready.vm;
    let disks: Vec<String> = ready
        .disks
        .iter()
        .zip(&ready.sizes)
        .map(|(disk, size)| format!("{} {} {} MiB", disk.target, disk.format, size >> 20))
        .collect();
    line.info(format!(
        "{vm}: domain {:?}: {}",
        ready.domain.name(),
        disks.join(", ")
    ));
    for disk in &ready.left_out {
        line.info(format!(
            "{vm}/{}: not in the backup: {}",
            disk.target, disk.reason
        ));
    }
    for (disk, image) in ready.disks.iter().zip(&ready.images) {
        announce_image(line, vm, disk, image);
    }
    for what in &ready.not_in_backup {
        line.warn(format!("{vm}: not in the backup: {what}"));
    }
}

/// Says what of a disk's image a restore will not bring back as it is.
fn announce_image(line: &Line, vm: &str, disk: &Chosen, image: &Image) {
    let target = &disk.target;
    if !image.chain.is_empty() {
        line.info(format!(
            "{vm}/{target}: flattened with the {} below it",
            images(image.chain.len())
        ));
    }
    if let Some(file) = &image.data_file {
        line.info(format!(
            "{vm}/{target}: flattened with its data file {}",
            file.display()
        ));
    }
    if !image.snapshots.is_empty() {
        line.info(format!(
            "{vm}/{target}: not in the backup: its internal snapshots {:?}",
            image.snapshots
        ));
    }
    if let Some(why) = &image.unknown {
        line.warn(format!(
            "{vm}/{target}: what is below, beside or inside its image is not known: {why}"
        ));
    }
}

fn images(count: usize) -> String {
    match count {
        1 => "1 image".into(),
        _ => format!("{count} images"),
    }
}
