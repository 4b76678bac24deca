//! What lies outside of this host: the NFS server that has the volumes, and who hears of jobs.

use std::fmt;

use super::check::Checker;
use crate::config;

/// What is mounted on the directory of the volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nfs {
    /// `server:/path`.
    pub(crate) source: String,
    /// What a write does when the server is silent.
    pub(crate) mode: NfsMode,
}

/// What a write to an NFS server does that does not answer: nfs(5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NfsMode {
    /// It fails with ETIMEDOUT after a long wait, and the job with it. A server that reboots is waited for.
    #[default]
    Softerr,
    /// The same with EIO, which cannot be told from a broken disk.
    Soft,
    /// It waits for ever: no write is lost, but a job hangs until the server is back or it is cancelled, and a
    /// process in such a wait cannot be ended by SIGTERM.
    Hard,
}

impl fmt::Display for NfsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Softerr => "softerr",
            Self::Soft => "soft",
            Self::Hard => "hard",
        })
    }
}

/// Who hears of jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Alerts {
    /// Addresses, at least one.
    pub(crate) mail: Vec<String>,
    /// Also of jobs that went well?
    pub(crate) all: bool,
    /// Address of the sender.
    pub(crate) from: String,
    /// Mail server.
    pub(crate) server: String,
    /// Its port.
    pub(crate) port: u16,
}

impl Checker<'_> {
    pub(super) fn nfs(&mut self, storage: &config::Storage) -> Option<Nfs> {
        let mode = match storage.nfs_mode.as_deref() {
            None | Some("softerr") => NfsMode::Softerr,
            Some("soft") => NfsMode::Soft,
            Some("hard") => NfsMode::Hard,
            Some(text) => {
                let reason = format!("is {text:?}");
                let remedy = "write \"softerr\", \"soft\" or \"hard\"";
                self.bad("storage.nfs_mode", &reason, remedy);
                NfsMode::default()
            }
        };
        let Some(source) = &storage.nfs else {
            if storage.nfs_mode.is_some() {
                let reason = "is set, but nothing is mounted";
                self.bad("storage.nfs_mode", reason, "set storage.nfs, or remove it");
            }
            return None;
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
        let fine = source.rsplit_once(':').is_some_and(|(server, path)| {
            let server = server
                .strip_prefix('[')
                .map_or(server, |s| s.trim_end_matches(']'));
            let host = |b: u8| b.is_ascii_alphanumeric() || b".-:".contains(&b);
            !server.is_empty()
                && !server.starts_with('-')
                && server.bytes().all(host)
                && path.starts_with('/')
                && path.bytes().all(plain)
        });
        if !fine || source.len() > 500 {
            let reason =
                format!("is {source:?}, not a server and a path of A-Z a-z 0-9 . _ - only");
            let remedy = "write one such as nas.example.org:/export/lab-backup";
            self.bad("storage.nfs", &reason, remedy);
        }
        Some(Nfs {
            source: source.clone(),
            mode,
        })
    }

    pub(super) fn alerts(&mut self, alerts: &config::Alerts, host: &str) -> Option<Alerts> {
        for address in &alerts.mail {
            self.mail_address("alerts.mail", address);
        }
        let from = match &alerts.from {
            Some(from) => {
                self.mail_address("alerts.from", from);
                from.clone()
            }
            None => format!("lab-backup@{host}"),
        };
        let all = match alerts.on.as_deref() {
            None | Some("all") => true,
            Some("problems") => false,
            Some(text) => {
                let reason = format!("is {text:?}");
                self.bad("alerts.on", &reason, "write \"all\" or \"problems\"");
                true
            }
        };
        let smtp = alerts.smtp.as_deref().unwrap_or(host);
        let (server, port) = smtp.rsplit_once(':').unwrap_or((smtp, "25"));
        let port = port.parse().ok().filter(|port| *port > 0);
        let label = |b: u8| b.is_ascii_alphanumeric() || b".-".contains(&b);
        let named = !server.is_empty() && !server.starts_with('-') && server.bytes().all(label);
        if alerts.smtp.is_some() && (!named || port.is_none()) {
            let reason = format!("is {smtp:?}, no name and port of a server");
            let remedy = "write one such as mail.example.org:25";
            self.bad("alerts.smtp", &reason, remedy);
        }
        (!alerts.mail.is_empty()).then(|| Alerts {
            mail: alerts.mail.clone(),
            all,
            from,
            server: server.into(),
            port: port.unwrap_or(25),
        })
    }

    /// It stands in a command line that the Director splits at spaces and quotes.
    fn mail_address(&mut self, key: &str, text: &str) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._+-".contains(&b);
        let fine = text.split_once('@').is_some_and(|(name, host)| {
            let part = |part: &str| !part.is_empty() && part.bytes().all(plain);
            part(name) && part(host) && !text.starts_with('-')
        });
        if !fine || text.len() > 254 {
            let reason = format!("has {text:?}, no mail address of A-Z a-z 0-9 . _ + - only");
            self.bad(key, &reason, "write one such as admin@example.org");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    fn with(text: &str) -> String {
        let head = "version = 1\n[lab]\naddress = \"h\"\n[storage]\ndir = \"/v\"\n";
        match parse(&format!("{head}{text}")) {
            Ok(model) => format!("{:?} {:?}", model.storage.nfs, model.alerts),
            Err(problems) => problems.to_string(),
        }
    }

    #[test]
    fn shares_and_modes() {
        assert!(with("nfs = \"nas:/a/b\"\n").contains("Softerr"));
        assert!(with("nfs = \"[fe80::1]:/a\"\nnfs_mode = \"hard\"\n").contains("Hard"));
        for wrong in [
            "nas",
            "nas:a",
            ":/a",
            "-o:/a",
            "nas:/a b",
            "nas:/a,exec",
            "nas:/a\\n",
        ] {
            let said = with(&format!("nfs = \"{wrong}\"\n"));
            assert!(said.contains("line 6: storage.nfs:"), "{said}");
        }
        assert!(with("nfs_mode = \"soft\"\n").contains("nothing is mounted"));
        assert!(with("nfs = \"nas:/a\"\nnfs_mode = \"x\"\n").contains("line 7"));
    }

    #[test]
    fn who_hears_of_jobs() {
        assert!(with("").ends_with("None"));
        let said = with("[alerts]\nmail = [\"a@b.c\"]\n");
        assert!(
            said.contains("lab-backup@h") && said.contains("port: 25"),
            "{said}"
        );
        let said = with("[alerts]\nmail = [\"a@b\"]\nsmtp = \"m:2525\"\non = \"problems\"\n");
        assert!(
            said.contains("2525") && said.contains("all: false"),
            "{said}"
        );
        for wrong in ["a", "a@", "a b@c", "a@b\\\"", "-h@x", "a@b;c"] {
            let said = with(&format!("[alerts]\nmail = [\"{wrong}\"]\n"));
            assert!(said.contains("line 7: alerts.mail:"), "{said}");
        }
        for wrong in ["m:0", "m:x", "-f", "m m"] {
            let said = with(&format!("[alerts]\nsmtp = \"{wrong}\"\n"));
            assert!(said.contains("line 7: alerts.smtp:"), "{said}");
        }
    }
}
