//! Reads what bconsole prints. Nothing in it is trusted: it carries names, paths and messages
//! from other hosts.

use serde_json::Value;

/// What follows the greeting; `None` when there was none, that is, no connection.
pub(super) fn after_greeting(text: &str) -> Option<&str> {
    let at = text.find("1000 OK")?;
    let rest = text.get(at..)?;
    // The greeting has two lines: the version, and a hint about periods.
    let mut lines = rest.splitn(3, '\n');
    let (_, _) = (lines.next()?, lines.next()?);
    Some(lines.next().unwrap_or(""))
}

/// Every JSON object that stands on a line of its own.
pub(super) fn documents(text: &str) -> Vec<Value> {
    let objects = text.lines().filter(|line| line.starts_with('{'));
    objects
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// Every line that is a legal VM key and nothing else.
pub(super) fn names(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim_end);
    let mut names: Vec<String> = lines
        .filter(|line| relay::name::check(line).is_ok())
        .map(str::to_owned)
        .collect();
    // The echo of the command begins with a dot and is no key.
    names.dedup();
    names
}

/// The JobId of `Job queued. JobId=N`, the last one if there are several.
pub(super) fn queued(text: &str) -> Option<u32> {
    let mut found = None;
    for line in text.lines() {
        if let Some((_, id)) = line.split_once("Job queued. JobId=") {
            found = id.trim().parse().ok();
        }
    }
    found.filter(|id| *id > 0)
}

/// A line that is a list of JobIds such as `1,4,5` and nothing else.
pub(super) fn ids(text: &str) -> Option<Vec<u32>> {
    text.lines().find_map(|line| {
        let ids: Option<Vec<u32>> = line.trim().split(',').map(|id| id.parse().ok()).collect();
        ids.filter(|ids| ids.iter().all(|id| *id > 0))
    })
}

/// What became of each `mark` command: did it find a file?
pub(super) fn marked(text: &str) -> Vec<bool> {
    let answers = text.lines().filter_map(|line| {
        let line = line.trim_end();
        match line.ends_with("No files marked.") {
            true => Some(false),
            false => {
                let some = line.ends_with(" file marked.") || line.ends_with(" files marked.");
                some.then_some(true)
            }
        }
    });
    answers.collect()
}

/// What went wrong, as one short line.
pub(super) fn complaint(stdout: &str, stderr: &str) -> String {
    let noise = |line: &&str| {
        let line = line.trim();
        !line.is_empty()
            && !line.starts_with("Connecting to Director")
            && !line.starts_with("Using Catalog")
            && !line.starts_with("You have messages")
            && !line.starts_with(".api")
    };
    let lines: Vec<&str> = stdout.lines().chain(stderr.lines()).filter(noise).collect();
    let skip = lines.len().saturating_sub(3);
    let text = lines.get(skip..).unwrap_or(&[]).join("; ");
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(400)
        .collect();
    if text.is_empty() {
        return "it said nothing".into();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = "Connecting to Director 127.0.0.1:9101\n1000 OK: 10002 lab-backup-dir Version: 15.0.3 (25 March 2025)\nEnter a period to cancel a command.\n";

    #[test]
    fn without_a_greeting_there_is_no_answer() {
        assert_eq!(after_greeting("Connecting to Director x:9101\n"), None);
        assert_eq!(after_greeting(""), None);
        let text = format!("{GREETING}run\nx\n");
        assert_eq!(after_greeting(&text), Some("run\nx\n"));
        assert_eq!(after_greeting("1000 OK"), None);
        assert_eq!(after_greeting("1000 OK\nhint"), Some(""));
    }

    #[test]
    fn documents_survive_what_surrounds_them() {
        let text = "{broken\n.status dir\n{\"a\":1}\nYou have messages.\n  {\"b\":2}\n{\"c\":\"\\n{\\\"d\\\":4}\"}\n";
        let found = documents(text);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0]["a"], 1);
        assert_eq!(found[1]["c"], "\n{\"d\":4}");
    }

    #[test]
    fn only_whole_lines_are_names() {
        let text =
            ".jobs type=B\nweb01\nUsing Catalog \"x\"\na b\n$(id)\nlab-backup-catalog\nweb02\n";
        assert_eq!(names(text), ["web01", "web02"]);
    }

    #[test]
    fn a_job_id_is_a_positive_number() {
        assert_eq!(
            queued("x\nJob queued. JobId=39\nYou have messages.\n"),
            Some(39)
        );
        for text in [
            "",
            "Job queued. JobId=",
            "Job queued. JobId=0",
            "Job queued. JobId=-1",
            "Job queued. JobId=99999999999",
        ] {
            assert_eq!(queued(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_list_of_ids_is_numbers_only() {
        assert_eq!(ids(".bvfs_get_jobids jobid=2\n1,2\n"), Some(vec![1, 2]));
        assert_eq!(ids("1,2;3\n1,,2\n,\n0\n-1\nJob 5\n"), None);
    }

    #[test]
    fn a_mark_finds_a_file_or_does_not() {
        let text = "cwd is: /\n$ mark \"vda.raw\"\n$ 1 file marked.\nNo files marked.\n$ 1,234 files marked.\n$ Restore not done.\n";
        assert_eq!(marked(text), [true, false, true]);
        assert!(marked("mark \"vda.raw\"\n3 files inserted into the tree.\n").is_empty());
    }

    #[test]
    fn a_complaint_is_one_printable_line() {
        let text = "Using Catalog \"x\"\nJob \"nosuch\" not found\u{1b}[2J\nSelect Job (1-2): \n";
        assert_eq!(
            complaint(text, ""),
            "Job \"nosuch\" not found [2J; Select Job (1-2): "
        );
        assert!(complaint(&"é".repeat(1000), "").chars().count() <= 400);
        assert_eq!(complaint("", ""), "it said nothing");
    }

    #[test]
    fn no_byte_salad_panics() {
        for text in [
            "{",
            "}{",
            "1000 OK\n\n{\"a\":",
            "\u{0}\n\u{fffd}",
            "{\"a\":1}{\"b\":2}",
        ] {
            let _ = after_greeting(text);
            let _ = documents(text);
            let _ = names(text);
            let _ = ids(text);
            let _ = marked(text);
            let _ = complaint(text, text);
        }
    }
}
