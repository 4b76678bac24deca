//! All of `lab.toml` but the VMs.

use std::fmt::Write as _;

use relay::policy;

use super::key::quoted;
use crate::model::{Base, Model, Tier};
use crate::schedule::Cycle;

/// The settings of `bare`, which has no VMs and is all defaults but for its address and directory.
pub(super) fn text(bare: &Model) -> String {
    let mut text = HEAD.to_owned();
    let _ = write!(
        text,
        "\
[lab]
# Shown in headings; one line of at most 100 bytes.
#name = {name}
# Host name of this host, by which containers, hypervisors and engineers all reach it. Not a number: a
# container cannot reach its own host by number.
address = {address}

[storage]
# Directory of the volumes: absolute, of A-Z a-z 0-9 . _ - only; best a file system of its own.
dir = {dir}
# What is mounted there; apply makes the mount, and the directory below it can be written by nobody. On the server it
# belongs to the account that runs the containers. Default: nothing, it is a local directory.
# nfs = \"nas.example.org:/export/lab-backup\"
# What a write does when the NFS server is silent. softerr: it fails after about 20 minutes, and the job with it. soft:
# the same, but the error looks like that of a broken disk. hard: it waits for ever, jobs hang.
# nfs_mode = \"softerr\"
# A directory on another disk or host that gets a copy of each recovery kit. Default: none.
# kit_copy = \"/mnt/elsewhere/lab-backup\"
# Upper bound of one volume, in MiB, GiB or TiB; at least \"64MiB\".
#volume_size = \"{volume}GiB\"
# Jobs that may use the storage at once, 2 to 64. A restore needs one for itself.
#devices = {devices}

[images]
# What the container images are built on: a fully qualified image reference, or the absolute path of a
# root file system as .tar or .tar.zst.
#base = {base}
# Ready-made images, which are pulled instead of built. Default: none, they are built here.
# catalog = \"registry.example.org/lab-backup-catalog:1\"
# director = \"registry.example.org/lab-backup-director:1\"
# storage = \"registry.example.org/lab-backup-storage:1\"

[alerts]
# Addresses that get mail of jobs. Default: nobody does.
#mail = []
# Of which jobs: \"all\", or \"problems\" for those that did not go well.
#on = \"all\"
# Address of the sender.
#from = {from}
# Mail server, as the Director's container finds it: name or name:port.
#smtp = {smtp}

[account]
# Login name of the account that runs the containers; apply makes it. 1 to 31 of a-z 0-9 - _.
#name = {account}

",
        name = quoted(&bare.name),
        address = quoted(&bare.address),
        dir = quoted(&bare.storage.dir.to_string_lossy()),
        volume = bare.storage.volume_bytes >> 30,
        devices = bare.storage.devices,
        base = quoted(&match &bare.images.base {
            Base::Image(reference) => reference.clone(),
            Base::Tar(path) => path.to_string_lossy().into_owned(),
        }),
        account = quoted(&bare.account),
        from = quoted(&format!("lab-backup@{}", bare.address)),
        smtp = quoted(&format!("{}:25", bare.address)),
    );
    text.push_str(TIERS);
    for (number, tier) in &bare.tiers {
        text.push_str(&tier_text(*number, tier));
    }
    let policy = &bare.hypervisor.policy;
    let dirs = policy.restore_dirs.iter();
    let dirs: Vec<_> = dirs.map(|dir| quoted(&dir.to_string_lossy())).collect();
    let _ = write!(
        text,
        "\
# The hypervisor, which is this host; one table.
[hypervisors.{hypervisor}]
# Host name of its File Daemon. Default: that of [lab].
#address = {address}
# Where the scratch images of running backups lie: a local file system with room for what guests write
# meanwhile, best not the one with the images of guests.
#scratch_dir = {scratch}
# Directories below which a restore may write, besides those of the original images.
#restore_dirs = [{dirs}]
# May a libvirt daemon that answers nobody for 10 s while a guest is frozen be restarted? Guests go on.
#restart_libvirt = {restart}

",
        hypervisor = bare.hypervisor.name,
        address = quoted(&bare.hypervisor.address),
        scratch = quoted(&policy.scratch_dir.to_string_lossy()),
        dirs = dirs.join(", "),
        restart = policy.restart_libvirt,
    );
    text.push_str(&vm_keys());
    text
}

const HEAD: &str = "\
# lab.toml: which VMs are backed up, how often, and where that goes.
#
# A line that begins with # and a key, without a blank between, shows what holds unless it is changed:
# take the # away to change it. lab-backup plan shows what a change would do, lab-backup apply does it.

# Version of this file.
version = 1

";

const TIERS: &str = "\
# Tiers: how often the VMs of a tier are backed up and how long that is kept; 0 to 99, those shown are
# there in any case.
#   role          what belongs there; one line of at most 100 bytes
#   full          when a Full runs: \"never\", \"daily 01:00\", \"weekly sun 01:00\" or \"monthly 1st sun 01:00\"
#                 (1st to 4th), in UTC. The first job of a VM is a Full in any case. A tier with increments
#                 and without Fulls must be kept \"forever\".
#   differential  when a Differential runs, which holds what changed since the last Full
#   incremental   when an Incremental runs, which holds what changed since the last job
#   window        how far back a restore must reach: \"30 days\" (1 to 3650), or \"forever\". Volumes are
#                 kept longer than that, so that no chain loses its root.
#   compression   \"none\", or \"lzo\", which gives up bextract: it reads compressed volumes wrong
#   audit_every   every how many increments a disk is read whole and compared with its dirty bitmap, 1 to
#                 1000; 1 trusts no bitmap
";

fn tier_text(number: u8, tier: &Tier) -> String {
    let cycle = |cycle: Option<Cycle>| quoted(&cycle.map_or("never".into(), |c| c.to_string()));
    let window = tier.window_days;
    format!(
        "\
[tiers.{number}]
#role = {role}
#full = {full}
#differential = {differential}
#incremental = {incremental}
#window = {window}
#compression = {compression}
#audit_every = {audit}

",
        role = quoted(&tier.role),
        full = cycle(tier.full),
        differential = cycle(tier.differential),
        incremental = cycle(tier.incremental),
        window = quoted(&window.map_or("forever".into(), |days| format!("{days} days"))),
        compression = quoted(if tier.lzo { "lzo" } else { "none" }),
        audit = tier.audit_every,
    )
}

/// What may stand under a VM, with an example that is switched off.
fn vm_keys() -> String {
    let freeze = policy::FREEZE_MS;
    format!(
        "\
# Users: a console each, with a password of its own; `lab-backup console NAME` prints what they need. None by default.
# [users.alice]
# \"engineer\": runs backups and cancels them; \"operator\": also restores and replaces VMs; \"monitor\": only looks.
# role = \"engineer\"
# Keys of the VMs that they see. Default: all.
# vms = [\"example\"]

# VMs: one table each. Its name is for ever, since jobs and the catalog know the VM by it: 1 to 64 of
# A-Z a-z 0-9 . _ -, beginning with a letter or digit, not with lab-backup-.
#[vms.example]
# libvirt's name of the VM. Default: the name of the table.
#domain = \"example\"
# libvirt's UUID of the VM (virsh domuuid). When given it decides, and the VM may be renamed.
# uuid = \"6f1c1b9e-0d6c-4c0a-8d5e-2b7f5c1d9a10\"
# Number of its tier; needed.
#tier = 2
# Are the guest's file systems frozen for the instant of the backup? \"off\", \"try\": if its agent answers,
# \"require\": or the job fails.
#quiesce = \"try\"
# Longest freeze in milliseconds, {min} to {max}.
#freeze_ms = 5000
# How disks are read: \"pull\" from the running VM, \"cold\" from the images of one that is off, \"auto\".
#method = \"auto\"
# Targets of disks that are left out, such as [\"vdb\"].
#exclude = []

",
        min = freeze.start(),
        max = freeze.end(),
    )
}
