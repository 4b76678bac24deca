//! Who may ask the Director for what: one console for each role, and one for each user.
//!
//! Bacula knows no order of rules: what a list does not name is refused. A restore is limited by the job that does it
//! (`lab-backup-restore` never replaces anything, whatever stands in `where`) and by the Clients that it may read.

use super::bacula::{Block, Value};
use super::director::secret;
use crate::model::{Model, Role, User};

const LOOK: &[&str] = &[
    "help",
    "list",
    "llist",
    "messages",
    "quit",
    "status",
    "use",
    "version",
    "wait",
    "gui",
    ".api",
    ".bvfs_get_jobids",
    ".bvfs_lsdirs",
    ".bvfs_lsfiles",
    ".bvfs_update",
    ".bvfs_versions",
    ".clients",
    ".help",
    ".jlist",
    ".jobs",
    ".levels",
    ".pools",
    ".status",
    ".storage",
    ".types",
];
const ACT: &[&str] = &[
    "run",
    "cancel",
    "restore",
    "estimate",
    ".bvfs_cleanup",
    ".bvfs_get_delta",
    ".bvfs_restore",
    ".defaults",
    ".filesets",
    ".catalogs",
];
const OPERATE: &[&str] = &["enable", "disable", "mount", "unmount"];

/// All consoles.
pub(super) fn blocks(model: &Model) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (name, role) in [
        ("engineer", Role::Engineer),
        ("operator", Role::Operator),
        ("monitor", Role::Monitor),
    ] {
        let user = User { role, vms: None };
        blocks.push(console(name, &format!("console-{name}"), &user, model));
    }
    for (name, user) in &model.users {
        blocks.push(console(name, &format!("user-{name}"), user, model));
    }
    blocks
}

fn console(name: &str, password: &str, user: &User, model: &Model) -> Block {
    let all = || vec!["*all*".to_owned()];
    let seen: Vec<String> = match &user.vms {
        Some(vms) => vms.clone(),
        None => model.vms.keys().cloned().collect(),
    };
    let commands: &[&[&str]] = match user.role {
        Role::Engineer => &[LOOK, ACT],
        Role::Operator => &[LOOK, ACT, OPERATE],
        Role::Monitor => &[LOOK],
    };
    let commands = commands.iter().flat_map(|list| list.iter());
    let commands: Vec<String> = commands.map(|word| (*word).to_owned()).collect();
    let everything = user.vms.is_none() && user.role != Role::Engineer;
    let host = format!("lab-backup-fd-{}", model.hypervisor.name);
    let with = |names: &[String], more: &[&str]| -> Vec<String> {
        let more = more.iter().map(|name| (*name).to_owned());
        names.iter().cloned().chain(more).collect()
    };
    let jobs = match (user.role, everything) {
        (_, true) => all(),
        (Role::Operator, _) => with(
            &seen,
            &[
                "lab-backup-restore",
                "lab-backup-restore-replace",
                "lab-backup-verify",
            ],
        ),
        (Role::Engineer, _) => with(&seen, &["lab-backup-restore", "lab-backup-verify"]),
        (Role::Monitor, _) => seen.clone(),
    };
    // Where a gateway is restored to is nothing to be tried out.
    let open = |vm: &&String| model.vms.get(*vm).is_none_or(|vm| vm.tier > 0);
    let restored: Vec<String> = match (user.role, everything) {
        (Role::Monitor, _) => vec!["lab-backup-nobody".into()],
        (_, true) => all(),
        (Role::Operator, _) => with(&seen, &[&host]),
        (Role::Engineer, _) => {
            let open: Vec<String> = seen.iter().filter(open).cloned().collect();
            with(&open, &[&host])
        }
    };
    let (file_sets, clients) = match everything {
        true => (all(), all()),
        false => (with(&seen, &["lab-backup-restore"]), with(&seen, &[&host])),
    };
    let places = match user.role {
        Role::Monitor => vec!["/nonexistent".into()],
        _ => all(),
    };
    Block::new("Console")
        .set("Name", name)
        .set("Password", secret(password))
        .tls()
        .set("Command ACL", Value::List(commands))
        .set("Job ACL", Value::List(jobs))
        .set("Backup Client ACL", Value::List(clients))
        .set("Restore Client ACL", Value::List(restored))
        .set("Storage ACL", Value::List(all()))
        .set("Schedule ACL", Value::List(all()))
        .set("Pool ACL", Value::List(all()))
        .set("File Set ACL", Value::List(file_sets))
        .set("Catalog ACL", Value::List(all()))
        .set("Directory ACL", Value::List(all()))
        .set("Where ACL", Value::List(places))
}
