//! Exit codes of every verb. An unknown code must be read as failure.
//!
//! 130 is the shell's own word for an interrupted program: a verb that only watches is ended by
//! Ctrl-C, and what it watches goes on.

use std::process::ExitCode;

/// How a verb ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: done.
    Done,
    /// 1: failed; nothing or not everything was done, and the error says which.
    Failed,
    /// 2: the command line or `lab.toml` was wrong; nothing was done.
    Usage,
    /// 3: done, with warnings to read.
    Warnings,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Warnings => 3,
        })
    }
}

impl Exit {
    /// The worse of two.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Usage, _) | (_, Self::Usage) => Self::Usage,
            (Self::Failed, _) | (_, Self::Failed) => Self::Failed,
            (Self::Warnings, _) | (_, Self::Warnings) => Self::Warnings,
            (Self::Done, Self::Done) => Self::Done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Exit::{self, Done, Failed, Usage, Warnings};

    #[test]
    fn the_worse_of_two_is_told() {
        for (a, b, worse) in [
            (Done, Done, Done),
            (Done, Warnings, Warnings),
            (Failed, Warnings, Failed),
            (Failed, Usage, Usage),
        ] {
            assert_eq!(Exit::and(a, b), worse);
            assert_eq!(Exit::and(b, a), worse);
        }
    }
}
