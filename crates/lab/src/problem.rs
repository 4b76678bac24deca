//! What is wrong with a `lab.toml`, told so that it can be mended.

use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Line of the file, if it stands on one.
    pub(crate) line: Option<usize>,
    /// Dotted name of the key.
    pub(crate) key: String,
    /// Why it is wrong; reads on after the key.
    pub(crate) reason: String,
    /// What to do.
    pub(crate) remedy: String,
}

impl Problem {
    /// A problem on a line.
    pub(crate) fn at(line: usize, key: &str, reason: &str, remedy: &str) -> Self {
        Self {
            line: Some(line),
            key: key.into(),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        write!(f, "{}: {}; {}", self.key, self.reason, self.remedy)
    }
}

/// All that is wrong with a file, never empty.
#[derive(Debug)]
pub(crate) struct Problems(pub(crate) Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(f, "lab.toml has {count} {noun}")?;
        for problem in &self.0 {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
