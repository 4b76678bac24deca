//! Who may ask the Director for what: one console for each role, and one for each user.
//!
//! What a list does not name is refused. But `run` and `restore` take any file of the Director as bootstrap of a job of
//! type Restore, and no list of Bacula's stands against that: whoever may start one reads every VM, and by the error that
//! the Storage Daemon makes of it the Director's own passwords. So those jobs are the operators' alone; engineers restore
//! through `lab-backup restore` as root. Nor have the `.bvfs` commands of Bacula 15 any limit, and `messages` hands the
//! messages of all to whoever asks first: who sees some VMs only has neither.

use super::bacula::{Block, Value};
use super::director::secret;
use crate::model::{Model, Role, User};

/// What tells of nothing but what the other lists name.
const LOOK: &[&str] = &[
    "help",
    "list",
    "llist",
    "quit",
    "status",
    "use",
    "version",
    "wait",
    "gui",
    ".api",
    ".bvfs_get_jobids",
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
/// What tells of every VM.
const LOOK_AT_ALL: &[&str] = &[
    "messages",
    ".bvfs_lsdirs",
    ".bvfs_lsfiles",
    ".bvfs_update",
    ".bvfs_versions",
];
const ACT: &[&str] = &[
    "run",
    "cancel",
    "estimate",
    ".defaults",
    ".filesets",
    ".catalogs",
];
const OPERATE: &[&str] = &[
    "restore",
    ".bvfs_cleanup",
    ".bvfs_get_delta",
    ".bvfs_restore",
    "enable",
    "disable",
    "mount",
    "unmount",
];

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
    let mut lists = vec![LOOK];
    match user.role {
        Role::Engineer => lists.push(ACT),
        Role::Operator => lists.extend([ACT, OPERATE]),
        Role::Monitor => {}
    }
    if user.vms.is_none() {
        lists.push(LOOK_AT_ALL);
    }
    let commands = lists.into_iter().flatten();
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
        _ => seen.clone(),
    };
    let restored = match (user.role, everything) {
        (Role::Operator, true) => all(),
        (Role::Operator, _) => with(&seen, &[&host]),
        _ => vec!["lab-backup-nobody".into()],
    };
    let (file_sets, clients) = match everything {
        true => (all(), all()),
        false => (with(&seen, &["lab-backup-restore"]), with(&seen, &[&host])),
    };
    let places = match user.role {
        Role::Operator => all(),
        _ => vec!["/nonexistent".into()],
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
