//! The Director's configuration: what is backed up when, into which pools, and who may ask.

use std::path::Path;

use relay::options::{self, Options};

use super::bacula::{Block, Value, days, file, word};
use super::{DIRECTOR_DIR, DUMP, Facts, VMS_DIR, root_file};
use crate::desired::File;
use crate::model::{Model, Tier, Vm};
use crate::schedule::Cycle;

/// Retention of what is kept for ever; Bacula has no word for it.
const FOREVER_DAYS: u32 = 36_500;
/// How much later than due the next Full may be. Half of what the retention allows for.
const LATE_DAYS: u32 = 5;

const MESSAGES: &str = "lab-backup";
const STORAGE: &str = "lab-backup-sd";
const CATALOG: &str = "lab-backup";

/// `bacula-dir.conf` and one file per VM.
pub(super) fn files(model: &Model, facts: &Facts) -> Vec<File> {
    let dir = Path::new(DIRECTOR_DIR);
    let mut blocks = vec![
        director(),
        catalog(),
        messages("lab-backup-daemon", false, model),
        messages(MESSAGES, true, model),
        storage(model),
    ];
    for (number, tier) in &model.tiers {
        blocks.extend(tier_blocks(*number, tier, model));
    }
    blocks.extend(restore_blocks(model));
    blocks.extend(catalog_blocks(model, facts));
    blocks.extend(super::consoles::blocks(model));
    let mut main = file(&blocks);
    let mut files = Vec::new();
    let retired = facts.retired.iter().map(|(key, vm)| (key, vm, false));
    let mut vms: Vec<_> = model
        .vms
        .iter()
        .map(|(key, vm)| (key, vm, true))
        .chain(retired)
        .collect();
    vms.sort_by_key(|(key, ..)| *key);
    if !vms.is_empty() {
        main.push('\n');
    }
    for (key, vm, runs) in vms {
        // The path as the Director sees it inside its container.
        main.push_str(&format!("@/etc/lab-backup/vms/{key}.conf\n"));
        let text = file(&vm_blocks(key, vm, runs, model));
        files.push(root_file(
            Path::new(VMS_DIR).join(format!("{key}.conf")),
            text,
        ));
    }
    files.push(root_file(dir.join("bacula-dir.conf"), main));
    files
}

pub(super) fn secret(name: &str) -> Value {
    Value::Secret(format!("/run/secrets/{name}"))
}

fn director() -> Block {
    Block::new("Director")
        .set("Name", "lab-backup-dir")
        .set("Dir Port", 9101)
        .set("Query File", "/usr/share/lab-backup/query.sql")
        .set("Working Directory", "/var/lib/bacula")
        .set("Pid Directory", "/var/lib/bacula")
        .set("Maximum Concurrent Jobs", 50)
        .set("Heartbeat Interval", 60)
        .set("Messages", "lab-backup-daemon")
        .set("Password", secret("director"))
        .tls()
}

fn catalog() -> Block {
    Block::new("Catalog")
        .set("Name", CATALOG)
        .set("DB Name", "bacula")
        .set("DB User", "bacula")
        .set("DB Password", secret("catalog"))
        .set("DB Address", "lab-backup-catalog")
        .set("DB Port", 5432)
}

fn messages(name: &str, job: bool, model: &Model) -> Block {
    // What goes to stdout ends in the host's journal, under the name of the unit.
    let block = Block::new("Messages")
        .set("Name", name)
        .set("Console", word("all, !skipped, !saved"))
        .set("Stdout", word("all, !skipped, !saved"));
    let mut block = match job {
        true => block.set("Catalog", word("all, !skipped, !saved")),
        false => block,
    };
    if let Some(alerts) = &model.alerts {
        let quoted: Vec<String> = alerts.mail.iter().map(|to| format!("\"{to}\"")).collect();
        let (to, lab) = (quoted.join(", "), subject(&model.name));
        let (server, port) = (&alerts.server, alerts.port);
        // bsmtp(1) takes several receivers after its options; the Director puts them at %r.
        let send = |what: &str| {
            format!(
                "/usr/sbin/bsmtp -8 -h {server}:{port} -f {} -s \"{lab}: {what}\" %r",
                alerts.from
            )
        };
        block = block.set("Mail Command", send("%t of %n %l: %e"));
        let key = match (job, alerts.all) {
            (true, true) => "Mail",
            (true, false) => "Mail On Error",
            (false, _) => {
                // What concerns no job: only what somebody must look at.
                let what = format!("{to} = error, fatal, terminate, security, alert");
                return block.set("Mail", word(&what));
            }
        };
        block = block.set(key, word(&format!("{to} = all, !skipped, !saved")));
    }
    block
}

/// The job that saves the catalog, once a day when the night's backups are over.
fn catalog_blocks(model: &Model, facts: &Facts) -> Vec<Block> {
    const NAME: &str = "lab-backup-catalog";
    // A catalog only serves while the newest volumes are there; older ones are for looking back.
    const KEPT_DAYS: u32 = 60;
    let dump = facts
        .director_data
        .join(DUMP)
        .to_string_lossy()
        .into_owned();
    let include = Block::new("Include")
        .with(Block::new("Options").set("Signature", word("Xxh3_128")))
        .set("File", dump)
        .set("File", "/etc/lab-backup/lab.toml");
    let before = Block::new("Run Script")
        .set("Runs When", word("Before"))
        .set("Runs On Client", false)
        .set("Fail Job On Error", true)
        .set("Command", "/usr/libexec/lab-backup/dump");
    vec![
        pool(NAME, Some(KEPT_DAYS), model),
        Block::new("Schedule")
            .set("Name", NAME)
            .set("Run", word("Level=Full daily at 09:30")),
        Block::new("FileSet").set("Name", NAME).with(include),
        Block::new("Job")
            .set("Name", NAME)
            .set("Type", word("Backup"))
            .set("Level", word("Full"))
            .set("Client", format!("lab-backup-fd-{}", model.hypervisor.name))
            .set("File Set", NAME)
            .set("Schedule", NAME)
            .set("Storage", STORAGE)
            .set("Pool", NAME)
            .set("Messages", MESSAGES)
            .set("Allow Duplicate Jobs", false)
            .set("Write Bootstrap", "/var/lib/bacula/bootstrap/%n.bsr")
            .with(before),
    ]
}

/// The lab's name as it may stand in a subject: bsmtp's command line is split at quotes, and `%` begins a code.
fn subject(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || " ._-".contains(c);
    name.chars().filter(|c| plain(*c)).collect()
}

fn storage(model: &Model) -> Block {
    Block::new("Storage")
        .set("Name", STORAGE)
        // The Director hands this to the File Daemons, so it must be right on both sides.
        .set("Address", model.address.as_str())
        .set("SD Port", 9103)
        .set("Device", STORAGE)
        .set("Autochanger", STORAGE)
        .set("Media Type", "lab-backup-file")
        .set("Maximum Concurrent Jobs", model.storage.devices)
        .set("Heartbeat Interval", 60)
        .set("Password", secret("storage"))
        .tls()
}

fn tier_blocks(number: u8, tier: &Tier, model: &Model) -> Vec<Block> {
    let name = format!("tier{number}");
    let runs = runs(tier);
    let kept = tier.retention();
    let pool = |level: &str, days: Option<u32>| pool(&format!("{name}-{level}"), days, model);
    let mut blocks = vec![
        pool("full", kept.map(|k| k.full)),
        pool("diff", kept.map(|k| k.differential)),
        pool("inc", kept.map(|k| k.incremental)),
    ];
    let mut defs = Block::new("JobDefs")
        .set("Name", name.as_str())
        .set("Description", tier.role.as_str())
        .set("Type", word("Backup"))
        .set("Level", word("Incremental"))
        .set("Storage", STORAGE)
        .set("Messages", MESSAGES)
        .set("Pool", format!("{name}-full"))
        .set("Full Backup Pool", format!("{name}-full"))
        .set("Differential Backup Pool", format!("{name}-diff"))
        .set("Incremental Backup Pool", format!("{name}-inc"))
        // The plugin learns from it where a delta may sit.
        .set("Accurate", true)
        // Two jobs of one VM at a time would fall out of each other's chain.
        .set("Maximum Concurrent Jobs", 1)
        .set("Allow Duplicate Jobs", false)
        .set("Cancel Queued Duplicates", true)
        // A disk that has moved on cannot be resumed half way.
        .set("Allow Incomplete Jobs", false)
        .set("Reschedule Incomplete Jobs", false)
        .set("Rerun Failed Levels", true)
        // What to read to bring the VM back, should the catalog be lost; the recovery kit takes it along.
        .set("Write Bootstrap", "/var/lib/bacula/bootstrap/%n.bsr")
        .set("Spool Attributes", true);
    if let (Some(full), Some(_)) = (tier.full, kept) {
        // Past this age the volume of the Full could expire under its increments.
        defs = defs.set("Max Full Interval", days(full.gap_days() + LATE_DAYS));
    }
    if !runs.is_empty() {
        let schedule = Block::new("Schedule").set("Name", name.as_str());
        blocks.push(
            runs.into_iter()
                .fold(schedule, |s, run| s.set("Run", word(&run))),
        );
        defs = defs.set("Schedule", name.as_str());
    }
    blocks.push(defs);
    blocks
}

/// The lines of a tier's schedule, most thorough level first.
fn runs(tier: &Tier) -> Vec<String> {
    let mut greater: Vec<Cycle> = Vec::new();
    let mut lines = Vec::new();
    for (level, cycle) in [
        ("Full", tier.full),
        ("Differential", tier.differential),
        ("Incremental", tier.incremental),
    ] {
        let Some(cycle) = cycle else { continue };
        let times = cycle.runs(&greater);
        lines.extend(
            times
                .into_iter()
                .map(|time| format!("Level={level} {time}")),
        );
        greater.push(cycle);
    }
    lines
}

fn pool(name: &str, kept: Option<u32>, model: &Model) -> Block {
    Block::new("Pool")
        .set("Name", name)
        .set("Pool Type", word("Backup"))
        .set("Storage", STORAGE)
        .set("Label Format", format!("{name}-"))
        // The age of a volume is the age of its only job; the retention counts on that.
        .set("Maximum Volume Jobs", 1)
        .set(
            "Maximum Volume Bytes",
            word(&model.storage.volume_bytes.to_string()),
        )
        .set("Volume Retention", days(kept.unwrap_or(FOREVER_DAYS)))
        .set("Auto Prune", kept.is_some())
        .set("Recycle", kept.is_some())
        .set("Recycle Oldest Volume", false)
        .set("Purge Oldest Volume", false)
        .set("Action On Purge", word("Truncate"))
}

/// One that `runs` no longer is kept for its volumes: it can be restored, and no job of it begins.
fn vm_blocks(key: &str, vm: &Vm, runs: bool, model: &Model) -> Vec<Block> {
    let tier = model.tiers.get(&vm.tier);
    let lzo = tier.is_some_and(|t| t.lzo);
    let kept = tier
        .and_then(Tier::retention)
        .map_or(FOREVER_DAYS, |k| k.full);
    // Finds a damaged volume (Verify); that a disk is the right one is proven by its root. SHA256 costs the File Daemon more than all
    // the rest of its work: 3.3 s of 9.3 for 4 GiB.
    let mut options = Block::new("Options").set("Signature", word("Xxh3_128"));
    if lzo {
        options = options.set("Compression", word("LZO"));
    }
    let include = Block::new("Include")
        .with(options)
        // Constant for ever: a changed FileSet would force a Full.
        .set("Plugin", format!("lab-backup: vm={key}"));
    let file_set = Block::new("FileSet").set("Name", key).with(include);
    let job = Block::new("Job")
        .set("Name", key)
        .set("Job Defs", format!("tier{}", vm.tier))
        .set("Client", key)
        .set("File Set", key);
    let job = if runs { job } else { job.set("Enabled", false) };
    vec![client(key, kept, model), file_set, job]
}

fn client(name: &str, kept: u32, model: &Model) -> Block {
    Block::new("Client")
        .set("Name", name)
        .set("Address", model.hypervisor.address.as_str())
        .set("FD Port", 9102)
        .set("Catalog", CATALOG)
        .set("Maximum Concurrent Jobs", 4)
        .set("Heartbeat Interval", 60)
        // Records must outlive the volumes; pruning goes by volume.
        .set("File Retention", days(kept))
        .set("Job Retention", days(kept))
        .set("Auto Prune", false)
        .set("Password", secret("fd"))
        .tls()
}

/// Restores name their own client, jobs and place; what they may overwrite is in the job's name.
fn restore_blocks(model: &Model) -> Vec<Block> {
    let host = format!("lab-backup-fd-{}", model.hypervisor.name);
    let include = Block::new("Include")
        .with(Block::new("Options").set("Signature", word("Xxh3_128")))
        .set("File", "/etc/lab-backup/vms.toml");
    let proof = options::encode(&Options {
        v: 1,
        verify: true,
        ..Options::default()
    });
    let job = |name: &str, place: &str| {
        Block::new("Job")
            .set("Name", name)
            .set("Type", word("Restore"))
            .set("Client", host.as_str())
            .set("File Set", "lab-backup-restore")
            .set("Storage", STORAGE)
            .set("Pool", "tier0-full")
            .set("Messages", MESSAGES)
            .set("Where", place)
            .set("Replace", word("Always"))
            .set("Maximum Concurrent Jobs", 10)
    };
    vec![
        // The hypervisor's own File Daemon, for questions that concern no VM.
        client(&host, FOREVER_DAYS, model),
        Block::new("FileSet")
            .set("Name", "lab-backup-restore")
            .with(include),
        job("lab-backup-restore", "/"),
        job("lab-backup-restore-replace", "/"),
        // Whoever starts it by hand need not know what stands in its `where`.
        job("lab-backup-verify", &proof),
    ]
}
