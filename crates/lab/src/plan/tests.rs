use std::path::Path;

use super::*;
use crate::host::{Found, Login};
use crate::observe::UnitState;

fn file(path: &str, text: &str) -> File {
    File {
        path: path.into(),
        text: text.into(),
        mode: 0o644,
        secret: false,
    }
}

fn desired(files: Vec<File>) -> Desired {
    Desired {
        account: "lab-backup".into(),
        uid: 1000,
        dirs: Vec::new(),
        files,
        owned: Vec::new(),
        images: Vec::new(),
        secrets: Vec::new(),
        mounts: Vec::new(),
        sentinel: sentinel(),
        services: Vec::new(),
    }
}

fn sentinel() -> Sentinel {
    Sentinel {
        path: "/v/.lab-backup".into(),
        record: "/etc/sentinel".into(),
        text: "kmark\n".into(),
        place: "/v".into(),
        elsewhere: None,
    }
}

/// A host whose directory of the volumes is marked.
fn state() -> State {
    let mut state = unmarked();
    let record = serde_json::json!({ "version": 1, "units": { SENTINEL: sentinel().applied() } });
    state.applied = serde_json::from_value(record).unwrap();
    state.sentinel = Some(sentinel().text);
    state
}

fn unmarked() -> State {
    State {
        login: Some(Login {
            name: "lab-backup".into(),
            uid: 1000,
            gid: 1000,
            home: "/home/lab-backup".into(),
        }),
        subids: true,
        linger: true,
        ..State::default()
    }
}

fn found(text: &str) -> Found {
    Found {
        text: text.into(),
        mode: 0o644,
        uid: 0,
    }
}

#[test]
fn a_plan_reads_as_what_will_change() {
    let ours = format!("{HEADER}a = 1\nb = 2\n");
    let mut changed = file("/etc/x", &ours.replace("b = 2", "b = 3"));
    changed.mode = 0o600;
    let secret = File {
        secret: true,
        ..file("/etc/secret", "hunter2")
    };
    let desired = desired(vec![changed, secret, file("/etc/foreign", "ours")]);
    let mut state = state();
    state.found.insert("/etc/x".into(), found(&ours));
    state.found.insert("/etc/secret".into(), found("hunter1"));
    state
        .found
        .insert("/etc/foreign".into(), found("Password = theirs"));
    state.strangers.push("/etc/old".into());
    let text = plan(&desired, &state).to_string();
    assert_eq!(
        text,
        "  ~ file /etc/secret, 0644\n      (not shown)\n\
         \x20 ~ file /etc/x, 0600\n      - b = 2\n      + b = 3\n\
         \x20 ~ file /etc/foreign, 0644\n      (replaces a file that lab-backup did not write)\n\
         \x20 - file /etc/old\n4 changes"
    );
    assert!(!text.contains("hunter") && !text.contains("theirs"));
}

#[test]
fn nothing_to_do_is_said_so() {
    let plan = plan(&desired(vec![file("/a", "x")]), &{
        let mut state = state();
        state.found.insert("/a".into(), found("x"));
        state
    });
    assert_eq!(plan.to_string(), "0 changes");
    assert_eq!(
        plan.json(),
        serde_json::json!({"version": 1, "changes": 0, "actions": [], "warnings": []})
    );
}

#[test]
fn the_base_is_fetched_only_to_build_something() {
    let image = |tag: &str, source| Image {
        tag: tag.into(),
        source,
    };
    let mut desired = desired(Vec::new());
    desired.images = vec![
        image(
            "base",
            Source::Import {
                tar: "/b.tar".into(),
            },
        ),
        image(
            "x",
            Source::Build {
                dir: "/x".into(),
                base: "base".into(),
            },
        ),
    ];
    let mut state = state();
    assert_eq!(plan(&desired, &state).actions.len(), 2);
    state.images.insert("x".into());
    assert_eq!(plan(&desired, &state).actions.len(), 0);
}

#[test]
fn what_a_unit_reads_decides_what_happens_to_it() {
    let service = Service {
        unit: "x.service".into(),
        scope: Scope::System,
        enable: false,
        starts_with: "1".into(),
        reloads: Some("1".into()),
        files: vec![Path::new("/x.conf").into()],
        beside: Vec::new(),
    };
    let with = |active, applied: &str, wrote| {
        let mut state = state();
        let unit = UnitState {
            active,
            enabled: true,
        };
        state.units.insert("x.service".into(), unit);
        state.applied = serde_json::from_str(applied).unwrap();
        start(&service, &state, wrote).map(|action| action.sign())
    };
    let record = |starts: &str, reloads: &str| {
        format!(
            r#"{{"version":1,"units":{{"x.service":{{"starts_with":"{starts}","reloads":"{reloads}"}}}}}}"#
        )
    };
    assert_eq!(with(true, &record("1", "1"), false), None);
    assert_eq!(with(true, &record("1", "1"), true), Some('~'));
    assert_eq!(with(true, &record("1", "2"), false), Some('~'));
    assert_eq!(with(true, &record("2", "1"), false), Some('!'));
    assert_eq!(with(false, &record("1", "1"), false), Some('+'));
    assert_eq!(with(true, r#"{"version":1,"units":{}}"#, false), Some('!'));
}

#[test]
fn the_directory_of_the_volumes_is_marked_once_and_its_mark_missed_for_ever() {
    let mut desired = desired(Vec::new());
    let mount = Service {
        unit: "v.mount".into(),
        scope: Scope::System,
        enable: true,
        starts_with: String::new(),
        reloads: None,
        files: Vec::new(),
        beside: Vec::new(),
    };
    desired.mounts.push(mount);
    let text = plan(&desired, &unmarked()).to_string();
    let place = |what: &str| text.find(what).unwrap();
    assert!(
        place("v.mount enabled") < place("mark /v/.lab-backup"),
        "{text}"
    );

    desired.mounts.clear();
    assert_eq!(plan(&desired, &state()).to_string(), "0 changes");
    for found in [None, Some("another".to_owned())] {
        let state = State {
            sentinel: found,
            ..state()
        };
        let plan = plan(&desired, &state);
        assert!(plan.actions.is_empty());
        assert!(
            plan.to_string()
                .starts_with("  ? /v/.lab-backup is missing"),
            "{plan}"
        );
    }
    // Another directory is marked anew.
    desired.sentinel.place = "/w".into();
    assert_eq!(plan(&desired, &state()).actions.len(), 1);
}
