//! One connection from the plugin, from HELLO to END.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use relay::frame::Kind;
use relay::message::{End, Hello, Op};
use relay::name;
use relay::policy::{Policy, Vm};

use crate::paths::Places;
use crate::session::Session;
use crate::{backup, inventory, restore};

/// How long the plugin may take to say what it wants.
const HELLO_LIMIT: Duration = Duration::from_secs(30);

/// What every job needs to know.
#[derive(Debug)]
pub struct Job {
    /// What the plugin said.
    pub hello: Hello,
    /// The hypervisor's policy.
    pub policy: Policy,
    /// Where things live.
    pub places: Places,
}

/// Serves one connection. True if the job succeeded.
///
/// Whatever goes wrong is told to the plugin in one line; it makes the job fail.
pub fn serve(socket: UnixStream, places: Places) -> Result<bool> {
    let mut session = Session::new(socket)?;
    let outcome = dispatch(&mut session, places);
    match outcome {
        Ok(end) => {
            session.end(end).context("the plugin left before END")?;
            Ok(true)
        }
        Err(error) => {
            session.fail(one_line(&error));
            Ok(false)
        }
    }
}

fn dispatch(session: &mut Session, places: Places) -> Result<End> {
    let line = session.line().clone();
    // A plugin that says nothing would be told for ever that we are alive.
    let limit = line.within(HELLO_LIMIT, "begin: the plugin does not say what it wants");
    let hello = session.hello()?;
    drop(limit);
    ensure!(
        hello.version == relay::VERSION,
        "the plugin speaks version {} of the relay, this worker {}; install both from one release",
        hello.version,
        relay::VERSION
    );
    let policy = Policy::load(relay::policy::PATH.as_ref())
        .context("run `lab-backup apply` to write the policy of this hypervisor")?;
    let run = Job {
        hello,
        policy,
        places,
    };
    match run.hello.op {
        Op::Backup => backup::run(session, &run),
        Op::Estimate => backup::estimate(session, &run),
        Op::Restore => restore::run(session, &run),
        Op::Query => query(session, &run),
    }
}

impl Job {
    /// The VM that the plugin line names, and its policy.
    pub fn vm(&self) -> Result<(&str, &Vm)> {
        let key = vm_of_line(&self.hello.line)?;
        let vm = self.policy.vms.get(key).with_context(|| {
            format!("VM {key} is not in the policy of this hypervisor; run `lab-backup apply`")
        })?;
        Ok((key, vm))
    }
}

/// Reads ` vm=web01`.
fn vm_of_line(line: &str) -> Result<&str> {
    let key = line
        .trim()
        .strip_prefix("vm=")
        .with_context(|| format!("plugin line {line:?} does not read lab-backup: vm=KEY"))?;
    name::check(key)?;
    Ok(key)
}

fn query(session: &mut Session, run: &Job) -> Result<End> {
    match run.hello.line.trim() {
        "inventory" => {
            let text = inventory::collect()?.to_json();
            let mut offset = 0;
            for piece in text.as_bytes().chunks(relay::frame::MAX_DATA as usize) {
                session.line().data(offset, piece)?;
                offset += piece.len() as u64;
            }
            Ok(session.sent())
        }
        other => bail!("query {other:?} is not known; known: inventory"),
    }
}

/// Waits for the frame that must come next and takes its header.
pub fn expect(session: &mut Session, kind: Kind, due: &'static str) -> Result<()> {
    let header = session.next(due)?;
    ensure!(
        header.kind == kind,
        "a {:?} frame came where {due} was due",
        header.kind
    );
    Ok(())
}

/// The chain of an error on one line, without control characters.
pub fn one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(1500)
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_line_names_one_legal_key() {
        assert_eq!(vm_of_line(" vm=web01").unwrap(), "web01");
        for line in ["", "vm=", "vm=$(id)", "vm=a b", "web01", "vm=a vm=b"] {
            assert!(vm_of_line(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn an_error_is_one_line() {
        let error = anyhow::anyhow!("a\nb").context("c");
        assert_eq!(one_line(&error), "c: a b");
    }
}
