//! Jobs as the catalog and the daemons tell of them.

use serde::Deserialize;
use serde_json::Value;

use super::{Console, Error, Line};

/// A row of the catalog's job table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Job {
    /// Its number.
    #[serde(rename = "jobid")]
    pub(crate) id: u32,
    /// Name of the Job resource: the VM's key for a backup.
    pub(crate) name: String,
    /// `B` backup, `R` restore, ….
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// `F`, `D` or `I`.
    pub(crate) level: String,
    /// One letter; `T` and `W` are good ends.
    #[serde(rename = "jobstatus")]
    pub(crate) status: String,
    /// When it began, `YYYY-MM-DD HH:MM:SS` UTC; empty before that.
    #[serde(rename = "starttime", default)]
    pub(crate) start: String,
    /// When it ended; empty or zeros before that.
    #[serde(rename = "endtime", default)]
    pub(crate) end: String,
    /// Bytes that were stored or restored.
    #[serde(rename = "jobbytes", default)]
    pub(crate) bytes: u64,
    /// Files that were stored or restored.
    #[serde(rename = "jobfiles", default)]
    pub(crate) files: u32,
    /// Pool that it wrote to.
    #[serde(rename = "poolname", default)]
    pub(crate) pool: String,
    /// Errors that were counted.
    #[serde(rename = "joberrors", default)]
    pub(crate) errors: u32,
}

impl Job {
    /// Has it ended, well or not?
    pub(crate) fn ended(&self) -> bool {
        matches!(
            self.status.as_str(),
            "T" | "W" | "E" | "e" | "f" | "A" | "I" | "D"
        )
    }

    /// Did it end well? One with errors did its work, but there is something to read.
    pub(crate) fn good(&self) -> bool {
        matches!(self.status.as_str(), "T" | "W")
    }

    /// Its status as a word.
    pub(crate) fn status_word(&self) -> &'static str {
        match self.status.as_str() {
            "T" if self.errors > 0 => "done with warnings",
            "T" => "done",
            "W" => "done with warnings",
            "E" | "e" => "error",
            "f" => "failed",
            "A" => "cancelled",
            "I" => "incomplete",
            "D" => "differences",
            "R" | "l" | "L" | "a" | "i" => "running",
            "C" => "created",
            _ => "waiting",
        }
    }
}

/// Its level as a word.
pub(crate) fn level_word(level: &str) -> &str {
    match level {
        "F" => "full",
        "D" => "differential",
        "I" => "incremental",
        _ => "-",
    }
}

impl Job {
    /// Number of the tier whose pool it wrote to.
    pub(crate) fn tier(&self) -> Option<u8> {
        self.pool
            .strip_prefix("tier")?
            .split('-')
            .next()?
            .parse()
            .ok()
    }
}

/// A job that the Director is busy with.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Running {
    /// Its number.
    #[serde(rename = "jobid")]
    pub(crate) id: u32,
    /// Name of the Job resource.
    pub(crate) name: String,
    /// `B` backup, `R` restore, ….
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    /// `F`, `D` or `I`.
    #[serde(default)]
    pub(crate) level: String,
    /// What it is doing, in Bacula's words.
    #[serde(default)]
    pub(crate) status: String,
}

/// How far a job has come on its File Daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Bytes that were moved.
    pub(crate) bytes: u64,
}

/// Finds the rows under `key` of any document; rows that are not understood are left out.
fn rows<T: for<'d> Deserialize<'d>>(documents: &[Value], key: &str) -> Vec<T> {
    let lists = documents.iter().filter_map(|d| d.get(key)?.as_array());
    lists
        .flatten()
        .filter_map(|row| T::deserialize(row).ok())
        .collect()
}

impl Console {
    /// A job of the catalog.
    pub(crate) fn job(&self, id: u32) -> Result<Option<Job>, Error> {
        Ok(self.jobs(&[id])?.pop())
    }

    /// Those of the jobs that the catalog has, in the same order.
    pub(crate) fn jobs(&self, ids: &[u32]) -> Result<Vec<Job>, Error> {
        let line = |id: &u32| Line::new(".jlist").value("jobid", &id.to_string());
        let lines: Vec<Line> = ids.iter().map(line).collect::<Result<_, _>>()?;
        let jobs: Vec<Job> = rows(&self.ask(&lines)?, "data");
        let find = |id: &u32| jobs.iter().find(|job| job.id == *id).cloned();
        Ok(ids.iter().filter_map(find).collect())
    }

    /// The newest backup jobs of each VM, newest first; `good` asks for those that ended well.
    pub(crate) fn backups(
        &self,
        vms: &[String],
        good: bool,
        limit: u32,
    ) -> Result<Vec<Job>, Error> {
        let mut lines = Vec::new();
        for vm in vms {
            let line = Line::new(".jlist").value("jobname", vm)?;
            let line = line.words(if good {
                "jobtype=B jobstatus=T"
            } else {
                "jobtype=B"
            });
            lines.push(
                line.words("order=desc")
                    .value("limit", &limit.to_string())?,
            );
        }
        if lines.is_empty() {
            return Ok(Vec::new());
        }
        let mut jobs: Vec<Job> = rows(&self.ask(&lines)?, "data");
        jobs.retain(|job| job.kind == "B" && vms.contains(&job.name));
        jobs.sort_by_key(|job| std::cmp::Reverse(job.id));
        jobs.dedup_by_key(|job| job.id);
        Ok(jobs)
    }

    /// Jobs that the Director is busy with or has queued.
    pub(crate) fn running(&self) -> Result<Vec<Running>, Error> {
        Ok(rows(
            &self.ask(&[Line::new(".status dir running")])?,
            "running",
        ))
    }

    /// How far a job has come; `None` when its File Daemon knows nothing of it.
    ///
    /// `client` must exist: for an unknown one bconsole would ask for another.
    pub(crate) fn progress(&self, client: &str, id: u32) -> Result<Option<Progress>, Error> {
        let line = Line::new(".status")
            .value("client", client)?
            .words("running");
        let documents = self.ask(&[line])?;
        let rows = documents
            .iter()
            .filter_map(|d| d.get("running")?.as_array());
        let row = rows
            .flatten()
            .find(|row| number(row, "jobid") == u64::from(id));
        Ok(row.map(|row| Progress {
            bytes: number(row, "jobbytes"),
        }))
    }

    /// The log of a job, one entry per line.
    pub(crate) fn log(&self, id: u32) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Entry {
            logtext: String,
        }
        let line = Line::new(".jlist joblog").value("jobid", &id.to_string())?;
        let entries: Vec<Entry> = rows(&self.ask(&[line])?, "data");
        Ok(entries
            .into_iter()
            .map(|e| e.logtext.trim_end().to_owned())
            .collect())
    }
}

fn number(row: &Value, key: &str) -> u64 {
    row.get(key).and_then(Value::as_u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_not_jobs_are_left_out() {
        let text = r#"{"type":"job","data":[{"jobid":2,"name":"web01","type":"B","level":"I","jobstatus":"T","jobbytes":5},{"jobid":"x"},7,null,{"jobid":4294967296,"name":"a","type":"B","level":"I","jobstatus":"T"}]}"#;
        let documents = [
            serde_json::from_str(text).unwrap(),
            Value::Null,
            serde_json::json!({"data": 3}),
        ];
        let jobs: Vec<Job> = rows(&documents, "data");
        assert_eq!(jobs.len(), 1);
        assert_eq!((jobs[0].id, jobs[0].bytes), (2, 5));
        assert!(jobs[0].good() && jobs[0].ended());
    }
}
