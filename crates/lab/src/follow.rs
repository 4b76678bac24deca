//! Watches a job until it ends.

use std::io::IsTerminal as _;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::bconsole::{Console, Error, Job};
use crate::show;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two lines when the output is no terminal.
const LINE_PAUSE: Duration = Duration::from_secs(10);
/// How long the catalog may take to know of a job that was queued.
const APPEAR: Duration = Duration::from_secs(60);

/// What to watch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched<'w> {
    /// JobId.
    pub(crate) id: u32,
    /// Client whose File Daemon does the work.
    pub(crate) client: &'w str,
    /// What is shown in front: the VM.
    pub(crate) label: &'w str,
    /// Bytes that it will move, if that is known.
    pub(crate) expected: Option<u64>,
}

/// Watches until the job ends and returns its last state.
pub(crate) fn follow(console: &Console, watched: Watched<'_>) -> Result<Job, Error> {
    let mut display = Display::new(watched);
    let start = Instant::now();
    loop {
        match console.job(watched.id)? {
            Some(job) if job.ended() => {
                display.clear();
                return Ok(job);
            }
            None if start.elapsed() > APPEAR => {
                display.clear();
                return Err(Error::Lost { id: watched.id });
            }
            _ => {}
        }
        // A File Daemon that does not answer says nothing about the job; the Director does.
        if display.is_due()
            && let Ok(Some(progress)) = console.progress(watched.client, watched.id)
        {
            display.show(progress.bytes);
        }
        thread::sleep(PAUSE);
    }
}

struct Display<'w> {
    watched: Watched<'w>,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl<'w> Display<'w> {
    fn new(watched: Watched<'w>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(watched));
        Self {
            watched,
            bar,
            last_line: Instant::now(),
        }
    }

    /// Would anything be shown now? Asking costs the daemons more than a line every few seconds is worth.
    fn is_due(&self) -> bool {
        self.bar.is_some() || self.last_line.elapsed() >= LINE_PAUSE
    }

    fn show(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            // More than expected is no error, only a bad guess.
            if bar.length().is_some_and(|length| bytes > length) {
                bar.set_length(bytes);
            }
            bar.set_position(bytes);
            return;
        }
        self.last_line = Instant::now();
        let Watched { id, label, .. } = self.watched;
        eprintln!("{label}: job {id}, {} so far", show::bytes(bytes));
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(watched: Watched<'_>) -> ProgressBar {
    let (bar, template) = match watched.expected {
        Some(expected) => (
            ProgressBar::new(expected),
            "{prefix} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{prefix} {spinner} {binary_bytes}, {binary_bytes_per_sec}, {elapsed}",
        ),
    };
    let style = ProgressStyle::with_template(template).expect("the template is constant");
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(format!("{}: job {}", watched.label, watched.id));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The lines of a job's log that say what went wrong, without their preamble.
pub(crate) fn causes(console: &Console, id: u32) -> Vec<String> {
    causes_in(&console.log(id).unwrap_or_default())
}

/// The same of a log at hand.
pub(crate) fn causes_in(log: &[String]) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    for line in log.iter().filter_map(|entry| entry.lines().next()) {
        let text = ["Fatal error: ", "Error: ", "Warning: "]
            .iter()
            .find_map(|word| Some(line.split_once(word)?.1));
        if let Some(text) = text {
            let text: String = text
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .take(600)
                .collect();
            // The closing summary of a failed job is an error too, but not its cause.
            if !causes.contains(&text) && !text.starts_with("Bacula ") {
                causes.push(text);
            }
        }
    }
    // What the daemons add explains nothing when there is a reason beside it.
    let plain = |cause: &String| !internal(cause) && !echo(cause);
    if causes.iter().any(plain) {
        causes.retain(plain);
    }
    causes
}

/// Does it begin with a place in Bacula's sources, such as `fd_plugins.c:802`?
fn internal(cause: &str) -> bool {
    let place = cause.split(' ').next().unwrap_or_default();
    let Some((file, line)) = place.split_once(":") else {
        return false;
    };
    (file.ends_with(".c") || file.ends_with(".cc"))
        && !file.contains('/')
        && !line.is_empty()
        && line.bytes().all(|b| b.is_ascii_digit() || b == b'-')
}

/// Is it what the Director says when a File Daemon that failed at once was faster than the Storage Daemon?
fn echo(cause: &str) -> bool {
    cause.starts_with("Director's connection to ") && cause.ends_with(" for this Job was lost.")
}

#[cfg(test)]
mod tests {
    use super::{echo, internal};

    #[test]
    fn a_connection_that_was_given_up_is_no_reason() {
        assert!(echo("Director's connection to SD for this Job was lost."));
        assert!(!echo("Director's connection to the catalog was refused"));
    }

    #[test]
    fn a_place_in_the_sources_is_no_reason() {
        assert!(internal("fd_plugins.c:1200 Plugin createFile call failed."));
        for text in ["/srv/a.c:1 exists", "web01/vda: no space", "a.c: x", ""] {
            assert!(!internal(text), "{text:?}");
        }
    }
}
