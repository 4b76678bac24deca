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
    /// The domain is off, but its memory lives on: it is frozen still when it comes back.
    #[error("the domain was {0} while it may have been frozen")]
    Away(&'static str),
    /// libvirt does not know the domain, or not why it is off. It may be gone for good, or it may have
    /// been saved or migrated, frozen as it was.
    #[error("the domain is missing")]
    Missing,
    /// libvirt itself does not answer.
    #[error("libvirt does not answer: {0}")]
    Lost(String),
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
/// Returns the number of file systems that thaws reported. When it takes `patience` and more, `late`
/// is called once so that somebody hears of it.
pub fn thaw_until_proven(
    guest: &impl Guest,
    patience: Duration,
    mut late: impl FnMut(&Trouble),
) -> u32 {
    thaw_while(guest, patience, |trouble| {
        late(trouble);
        true
    })
    // It never gives up.
    .unwrap_or_default()
}

/// Like [`thaw_until_proven`], but gives up with the last trouble after `patience`: somebody else
/// goes on.
pub fn thaw_within(guest: &impl Guest, patience: Duration) -> Result<u32, Trouble> {
    thaw_while(guest, patience, |_| false)
}

/// Thaws until that is proven. `late` is called once, after `patience`, and says whether to go on.
fn thaw_while(
    guest: &impl Guest,
    patience: Duration,
    mut late: impl FnMut(&Trouble) -> bool,
) -> Result<u32, Trouble> {
    let start = Instant::now();
    let mut thawed = 0;
    let mut told = false;
    let mut proofs = 0;
    while proofs < 2 {
        let step = guest
            .thaw()
            .map(|count| thawed += count)
            .and_then(|()| guest.is_frozen());
        let step = match step {
            Ok(true) => Err(Trouble::Unknown("it says that it is still frozen".into())),
            step => step,
        };
        match step {
            Ok(_) => proofs += 1,
            Err(Trouble::Gone) => return Ok(thawed),
            Err(trouble) => {
                proofs = 0;
                if !told && start.elapsed() >= patience {
                    told = true;
                    if !late(&trouble) {
                        return Err(trouble);
                    }
                }
            }
        }
        if proofs < 2 {
            guest.sleep(PROOF_GAP);
        }
    }
    Ok(thawed)
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
    fn a_saved_guest_is_thawed_when_it_comes_back() {
        let away = || Err(Trouble::Away("saved to a file"));
        assert_eq!(looks(vec![away(), away(), Ok(true), Ok(false)]), 5);
    }

    #[test]
    fn whoever_has_somebody_behind_gives_up() {
        let lost = || Err(Trouble::Lost("x".into()));
        let guest = Script(RefCell::new(vec![lost()].into()), RefCell::default());
        let given_up = thaw_within(&guest, Duration::ZERO);
        assert_eq!(given_up, Err(Trouble::Lost("x".into())));
        assert_eq!(thaw_within(&guest, Duration::ZERO), Ok(0));
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
