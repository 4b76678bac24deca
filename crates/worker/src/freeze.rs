//! Freezing a guest's file systems for the instant of the backup.
//!
//! ```text
//! unfrozen -> sent -> frozen   --+--> thawing -> proven thawed
//!                  -> in doubt --+
//! ```
//!
//! Any error of the freeze call means *in doubt*: a hung call outlives its client and may freeze
//! the guest later. Both states leave only through [`thaw_until_proven`].

use std::time::{Duration, Instant};

/// What the machine needs from a guest. The real one is a libvirt domain.
pub trait Guest {
    /// Freezes; the number of file systems.
    fn freeze(&self) -> Result<u32, Trouble>;
    /// Thaws; the number of file systems.
    fn thaw(&self) -> Result<u32, Trouble>;
    /// Does the agent say that it is frozen?
    fn is_frozen(&self) -> Result<bool, Trouble>;
    /// Waits; a test's clock does not.
    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Why the agent did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// There is no guest to harm any more: the domain is off or gone.
    #[error("the domain is not running")]
    Gone,
    /// The agent is not there or said no before anything began.
    #[error("the guest agent refuses: {0}")]
    Refused(String),
    /// Nobody knows.
    #[error("the guest agent did not answer: {0}")]
    Unknown(String),
}

/// Time between two looks that prove a thaw.
const PROOF_GAP: Duration = Duration::from_secs(1);

/// Thaws until the agent said *thawed* twice, a second apart, or the guest is gone.
///
/// The second look catches a freeze that was still queued in the agent when the first one passed.
/// Returns the number of file systems that thaws reported, and whether it took `patience` and
/// more, in which case `late` was called once so that somebody hears of it.
pub fn thaw_until_proven(
    guest: &impl Guest,
    patience: Duration,
    mut late: impl FnMut(&Trouble),
) -> u32 {
    let start = Instant::now();
    let mut thawed = 0;
    let mut told = false;
    let mut proofs = 0;
    while proofs < 2 {
        let step = guest
            .thaw()
            .map(|count| thawed += count)
            .and_then(|()| guest.is_frozen());
        match step {
            Ok(false) => proofs += 1,
            Ok(true) => proofs = 0,
            Err(Trouble::Gone) => return thawed,
            Err(trouble) => {
                proofs = 0;
                if !told && start.elapsed() >= patience {
                    told = true;
                    late(&trouble);
                }
            }
        }
        if proofs < 2 {
            guest.sleep(PROOF_GAP);
        }
    }
    thawed
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use super::*;

    /// Answers from a list; afterwards a thawed guest.
    struct Script(
        RefCell<VecDeque<Result<bool, Trouble>>>,
        RefCell<Vec<&'static str>>,
    );

    impl Guest for Script {
        fn freeze(&self) -> Result<u32, Trouble> {
            self.1.borrow_mut().push("freeze");
            Ok(1)
        }
        fn thaw(&self) -> Result<u32, Trouble> {
            self.1.borrow_mut().push("thaw");
            Ok(0)
        }
        fn is_frozen(&self) -> Result<bool, Trouble> {
            self.1.borrow_mut().push("look");
            self.0.borrow_mut().pop_front().unwrap_or(Ok(false))
        }
        fn sleep(&self, _: Duration) {}
    }

    fn looks(answers: Vec<Result<bool, Trouble>>) -> usize {
        let guest = Script(RefCell::new(answers.into()), RefCell::default());
        thaw_until_proven(&guest, Duration::ZERO, |_| {});
        let calls = guest.1.borrow();
        calls.iter().filter(|call| **call == "look").count()
    }

    #[test]
    fn two_looks_in_a_row_prove_a_thaw() {
        assert_eq!(looks(vec![]), 2);
        assert_eq!(looks(vec![Ok(false), Ok(true)]), 4);
        assert_eq!(looks(vec![Err(Trouble::Unknown("x".into())), Ok(false)]), 3);
    }

    #[test]
    fn a_guest_that_is_gone_needs_no_thaw() {
        assert_eq!(looks(vec![Err(Trouble::Gone)]), 1);
    }

    #[test]
    fn a_late_thaw_is_told_once() {
        let unknown = || Err(Trouble::Unknown("x".into()));
        let guest = Script(
            RefCell::new(vec![unknown(), unknown(), unknown()].into()),
            RefCell::default(),
        );
        let mut told = 0;
        thaw_until_proven(&guest, Duration::ZERO, |_| told += 1);
        assert_eq!(told, 1);
    }
}
