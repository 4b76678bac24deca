//! The one door to this host's files, accounts and services.
//!
//! Everything that looks or acts goes through [`Host`], so that a test can hand in a recording.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{self, Input, Output};

/// A login account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Login {
    /// Its name.
    pub(crate) name: String,
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
    /// Home directory.
    pub(crate) home: PathBuf,
}

/// What a program reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Feed {
    /// A file of any size, opened as root.
    File(PathBuf),
    /// A small file through a pipe: `podman secret` takes nothing else.
    Pipe(PathBuf),
}

/// A program to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Program and arguments; never a shell.
    pub(crate) argv: Vec<String>,
    /// What to feed it.
    pub(crate) stdin: Option<Feed>,
    /// Account to run it as; absent means root.
    pub(crate) login: Option<Login>,
    /// When to give up.
    pub(crate) limit: Duration,
}

impl Run {
    /// A program that answers soon.
    pub(crate) fn new(argv: &[&str]) -> Self {
        Self {
            argv: argv.iter().map(|a| (*a).to_owned()).collect(),
            stdin: None,
            login: None,
            limit: Duration::from_secs(60),
        }
    }

    /// Runs it as an account.
    pub(crate) fn login(mut self, login: &Login) -> Self {
        self.login = Some(login.clone());
        self
    }

    /// Lets it take longer.
    pub(crate) fn minutes(mut self, minutes: u64) -> Self {
        self.limit = Duration::from_secs(60 * minutes);
        self
    }

    /// As one line, for messages.
    pub(crate) fn line(&self) -> String {
        self.argv.join(" ")
    }

    /// All words that are run, those that change to the account included.
    fn command(&self) -> Vec<String> {
        let mut argv = Vec::new();
        if let Some(login) = &self.login {
            // Podman and systemctl find the account's own manager and store by these.
            let runtime = format!("/run/user/{}", login.uid);
            argv.extend(["runuser", "-u", &login.name, "--", "env"].map(str::to_owned));
            argv.push(format!("HOME={}", login.home.display()));
            argv.push(format!("DBUS_SESSION_BUS_ADDRESS=unix:path={runtime}/bus"));
            argv.push(format!("XDG_RUNTIME_DIR={runtime}"));
        }
        argv.extend(self.argv.iter().cloned());
        argv
    }

    /// The whole command as a shell would read it.
    pub(crate) fn shown(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
        let word = |word: &String| {
            if !word.is_empty() && word.chars().all(plain) {
                return word.clone();
            }
            format!("'{}'", word.replace('\'', "'\\''"))
        };
        let words: Vec<String> = self.command().iter().map(word).collect();
        words.join(" ")
    }
}

/// What a path holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Content of a file; empty for a directory.
    pub(crate) text: String,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
}

/// Looks at a host and changes it.
pub(crate) trait Host {
    /// A regular file or directory; `None` if there is nothing.
    fn look(&self, path: &Path) -> io::Result<Option<Found>>;
    /// Names in a directory; none if there is no such directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Runs a program to its end.
    fn run(&self, run: &Run) -> io::Result<Output>;
    /// Puts a file of root's in place, whole or not at all.
    fn write(&self, path: &Path, text: &str, mode: u32) -> io::Result<()>;
    /// Makes a directory, or changes an existing one's mode and owner.
    fn make_dir(&self, path: &Path, mode: u32, owner: (u32, u32)) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Gives a file a second name in the same directory, so that it survives the next write with
    /// owner, mode and label; what already has that name stays.
    fn keep(&self, path: &Path, kept: &Path) -> io::Result<()>;
    /// Puts a file in the place of another in the same directory.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a directory that is empty.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a file, or a directory with all that is in it.
    fn remove_tree(&self, path: &Path) -> io::Result<()>;
}

/// This machine.
#[derive(Debug)]
pub(crate) struct ThisHost;

impl ThisHost {
    /// Runs a program on our own terminal, for as long as it takes; did it end well?
    pub(crate) fn attach(&self, run: &Run) -> io::Result<bool> {
        let argv = run.command();
        let Some((program, arguments)) = argv.split_first() else {
            return Err(io::Error::other("no program"));
        };
        // The account may not enter the directory that we were called from.
        let status = Command::new(program)
            .args(arguments)
            .current_dir("/")
            .status()?;
        Ok(status.success())
    }
}

impl Host for ThisHost {
    fn look(&self, path: &Path) -> io::Result<Option<Found>> {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let text = if meta.is_file() {
            String::from_utf8_lossy(&fs::read(path)?).into_owned()
        } else if meta.is_dir() {
            String::new()
        } else {
            return Err(io::Error::other("is neither a file nor a directory"));
        };
        Ok(Some(Found {
            text,
            mode: meta.permissions().mode() & 0o7777,
            uid: meta.uid(),
        }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn run(&self, run: &Run) -> io::Result<Output> {
        let argv = run.command();
        let Some((program, arguments)) = argv.split_first() else {
            return Err(io::Error::other("no program"));
        };
        let input = match &run.stdin {
            None => Input::None,
            Some(Feed::File(path)) => Input::File(File::open(path)?),
            Some(Feed::Pipe(path)) => Input::Bytes(fs::read(path)?),
        };
        let mut command = Command::new(program);
        // The account may not enter the directory that apply was called from.
        command
            .args(arguments)
            .current_dir("/")
            .env("LC_ALL", "C.UTF-8");
        process::run(&mut command, input, run.limit)
    }

    fn write(&self, path: &Path, text: &str, mode: u32) -> io::Result<()> {
        let dir = path
            .parent()
            .ok_or_else(|| io::Error::other("has no directory"))?;
        let mut file = tempfile::Builder::new()
            .prefix(".lab-backup-")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(dir)?;
        file.write_all(text.as_bytes())?;
        let permissions = fs::Permissions::from_mode(mode);
        file.as_file().set_permissions(permissions)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(dir)?.sync_all()
    }

    fn make_dir(&self, path: &Path, mode: u32, owner: (u32, u32)) -> io::Result<()> {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        let (uid, gid) = owner;
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        gone(fs::remove_file(path))
    }

    fn keep(&self, path: &Path, kept: &Path) -> io::Result<()> {
        match fs::hard_link(path, kept) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        gone(fs::remove_dir(path))
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => gone(fs::remove_dir_all(path)),
            Ok(_) => self.remove(path),
            Err(error) => gone(Err(error)),
        }
    }
}

/// What is not there need not be removed.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_reads_it() {
        let run = Run::new(&["journalctl", "A=b", "+", "it's $HOME", ""]);
        assert_eq!(run.shown(), r"journalctl A=b + 'it'\''s $HOME' ''");
        let login = Login {
            name: "lab-backup".into(),
            uid: 1000,
            gid: 1000,
            home: "/home/lab-backup".into(),
        };
        assert_eq!(
            Run::new(&["podman", "ps"]).login(&login).shown(),
            "runuser -u lab-backup -- env HOME=/home/lab-backup \
             DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus \
             XDG_RUNTIME_DIR=/run/user/1000 podman ps"
        );
    }
}
