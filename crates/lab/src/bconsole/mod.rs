//! The only way to the Director: a `bconsole` child on a pipe.
//!
//! Facts about bconsole that shape this module:
//! * its exit code tells only whether it could connect; everything else is in its output;
//! * a command that it does not understand may open a prompt that eats the next line as its
//!   answer, so a command that acts is always the last one of its child;
//! * it echoes commands as it sends them, not as they are answered, so answers are told apart by
//!   what they contain, never by where they stand;
//! * a line break ends a command and `@` at the start of a line is an order to bconsole itself, so
//!   values travel in quotes and never with control characters.

mod answer;
mod job;
mod line;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

pub(crate) use job::{Job, Running, level_word};
pub(crate) use line::Line;

use crate::process::{self, Input};
use crate::render::BCONSOLE;

/// Why the Director gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// bconsole could not be run.
    #[error("cannot run bconsole")]
    Run(#[source] io::Error),
    /// bconsole could not connect.
    #[error("bconsole with {config} cannot reach the Director: {reason}; lab-backup plan shows what does not run", config = config.display())]
    Connect {
        /// Its configuration.
        config: PathBuf,
        /// What it said.
        reason: String,
    },
    /// The answer is not what was asked for.
    #[error("the Director's answer to {command:?} is not understood: {reason}")]
    Answer {
        /// The command.
        command: String,
        /// The end of the answer.
        reason: String,
    },
    /// The Director refused.
    #[error("the Director refuses {command:?}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// What it said.
        reason: String,
    },
    /// A job is not in the catalog.
    #[error("the catalog has no job {id}")]
    Lost {
        /// Its number.
        id: u32,
    },
    /// A value cannot be part of a command.
    #[error(transparent)]
    Line(#[from] line::BadValue),
}

/// A way to the Director.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    config: PathBuf,
    limit: Duration,
}

impl Console {
    /// Root's, without limits.
    pub(crate) fn root() -> Self {
        Self::with(Path::new(BCONSOLE))
    }

    /// One with another configuration file.
    pub(crate) fn with(config: &Path) -> Self {
        Self {
            config: config.into(),
            limit: Duration::from_secs(60),
        }
    }

    /// Gives commands and returns all that came back.
    fn talk(&self, commands: &[String]) -> Result<String, Error> {
        let mut text = commands.join("\n");
        text.push('\n');
        let mut command = Command::new("bconsole");
        command
            .arg("-n")
            .arg("-c")
            .arg(&self.config)
            .env("LC_ALL", "C.UTF-8");
        let output = process::run(&mut command, Input::Bytes(text.into_bytes()), self.limit);
        let output = output.map_err(Error::Run)?;
        match answer::after_greeting(&output.stdout) {
            Some(answer) => Ok(answer.to_owned()),
            None => Err(Error::Connect {
                config: self.config.clone(),
                reason: answer::complaint(&output.stdout, &output.stderr),
            }),
        }
    }

    /// Every JSON document that comes back for some questions; they must change nothing.
    pub(crate) fn ask(&self, questions: &[Line]) -> Result<Vec<Value>, Error> {
        let mut commands = vec![".api 2 api_opts=j".to_owned()];
        commands.extend(questions.iter().map(Line::text));
        let text = self.talk(&commands)?;
        let documents = answer::documents(&text);
        if documents.is_empty() {
            return Err(Error::Answer {
                command: questions
                    .iter()
                    .map(Line::text)
                    .collect::<Vec<_>>()
                    .join("; "),
                reason: answer::complaint(&text, ""),
            });
        }
        Ok(documents)
    }

    /// The plain answer to one command without values.
    pub(crate) fn text(&self, command: &'static str) -> Result<String, Error> {
        self.talk(&[command.to_owned()])
    }

    /// When the Director last took a configuration, in seconds since 1970.
    pub(crate) fn reloaded(&self) -> Result<u64, Error> {
        let command = Line::new(".status dir header");
        let documents = self.ask(std::slice::from_ref(&command))?;
        let epoch = documents
            .iter()
            .find_map(|d| d.get("header")?.get("reloaded_epoch")?.as_u64());
        epoch.ok_or_else(|| Error::Answer {
            command: command.text(),
            reason: "it has no reloaded_epoch".into(),
        })
    }

    /// Names of all backup jobs, which are the VM keys.
    pub(crate) fn vms(&self) -> Result<Vec<String>, Error> {
        let text = self.talk(&[".jobs type=B".to_owned()])?;
        Ok(answer::names(&text))
    }

    /// Gives one command that acts and returns the JobId that it queued.
    pub(crate) fn queue(&self, command: &[Line]) -> Result<u32, Error> {
        let lines: Vec<String> = command.iter().map(Line::text).collect();
        let text = self.talk(&lines)?;
        answer::queued(&text).ok_or_else(|| Error::Refused {
            command: lines.join("; "),
            reason: answer::complaint(&text, ""),
        })
    }

    /// Which of the `mark` commands at the end of `commands`, which choose files of a restore, find one.
    /// Nothing is restored.
    pub(crate) fn marked(&self, commands: &[Line], marks: usize) -> Result<Vec<bool>, Error> {
        let mut lines: Vec<String> = commands.iter().map(Line::text).collect();
        lines.push("quit".into());
        let text = self.talk(&lines)?;
        let found = answer::marked(&text);
        if found.len() == marks {
            return Ok(found);
        }
        Err(Error::Answer {
            command: lines.join("; "),
            reason: answer::complaint(&text, ""),
        })
    }

    /// The JobIds that a restore of `job` needs, oldest first.
    pub(crate) fn chain(&self, job: u32) -> Result<Vec<u32>, Error> {
        let command = Line::new(".bvfs_get_jobids").value("jobid", &job.to_string())?;
        let text = self.talk(&[command.text()])?;
        answer::ids(&text).ok_or_else(|| Error::Answer {
            command: command.text(),
            reason: answer::complaint(&text, ""),
        })
    }
}
