//! One command line for bconsole.

use std::fmt::Write as _;

/// A value that cannot be part of a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} has control characters, which a console command cannot carry")]
pub(crate) struct BadValue {
    value: String,
}

/// A command with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line(String);

impl Line {
    /// A command of our own words.
    pub(crate) fn new(words: &'static str) -> Self {
        Self(words.into())
    }

    /// Adds `key="value"`.
    pub(crate) fn value(mut self, key: &'static str, value: &str) -> Result<Self, BadValue> {
        let quoted = quote(value)?;
        // Writing to a String cannot fail.
        let _ = write!(self.0, " {key}={quoted}");
        Ok(self)
    }

    /// Adds a value that has no key.
    pub(crate) fn bare(mut self, value: &str) -> Result<Self, BadValue> {
        let quoted = quote(value)?;
        let _ = write!(self.0, " {quoted}");
        Ok(self)
    }

    /// Adds words of our own.
    pub(crate) fn words(mut self, words: &'static str) -> Self {
        let _ = write!(self.0, " {words}");
        self
    }

    /// The line as it is sent.
    pub(crate) fn text(&self) -> String {
        self.0.clone()
    }
}

fn quote(value: &str) -> Result<String, BadValue> {
    if value.chars().any(char::is_control) {
        return Err(BadValue {
            value: value.chars().take(80).collect(),
        });
    }
    Ok(format!(
        "\"{}\"",
        value.replace('\\', "\\\\").replace('"', "\\\"")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_leave_its_quotes() {
        let line = Line::new("run").value("job", "a\" yes \\").unwrap();
        assert_eq!(line.text(), r#"run job="a\" yes \\""#);
    }

    #[test]
    fn a_value_cannot_begin_another_command() {
        for value in ["a\nquit", "a\r@exec x", "\0", "a\u{85}b"] {
            assert!(Line::new("run").value("job", value).is_err(), "{value:?}");
        }
    }
}
