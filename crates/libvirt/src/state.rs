//! What a domain is doing, and why.

use virt_sys as sys;

/// What a domain is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Running, or waiting for a resource.
    Running,
    /// Processors stopped.
    Paused(PausedReason),
    /// On its way down, still running.
    ShuttingDown,
    /// Off.
    ShutOff(ShutOffReason),
    /// Off after a crash.
    Crashed,
    /// Put to sleep by the guest's power management.
    Asleep,
    /// Something this program does not know.
    Unknown(i32),
}

impl std::fmt::Display for State {
    /// In words that follow "is".
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            State::Running => f.write_str("running"),
            State::Paused(PausedReason::User) => f.write_str("paused"),
            State::Paused(PausedReason::IoError) => f.write_str("paused after an I/O error"),
            State::Paused(reason) => write!(f, "paused ({reason:?})"),
            State::ShuttingDown => f.write_str("shutting down"),
            State::ShutOff(_) => f.write_str("powered off"),
            State::Crashed => f.write_str("crashed"),
            State::Asleep => f.write_str("asleep"),
            State::Unknown(number) => write!(f, "in the unknown state {number}"),
        }
    }
}

impl State {
    /// Is there no QEMU process for it?
    pub fn is_off(self) -> bool {
        matches!(self, State::ShutOff(_) | State::Crashed)
    }

    pub(crate) fn from_raw((state, reason): (i32, i32)) -> Self {
        match u32::try_from(state) {
            Ok(sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED) => State::Running,
            Ok(sys::VIR_DOMAIN_PAUSED) => State::Paused(PausedReason::from_raw(reason)),
            Ok(sys::VIR_DOMAIN_SHUTDOWN) => State::ShuttingDown,
            Ok(sys::VIR_DOMAIN_SHUTOFF) => State::ShutOff(ShutOffReason::from_raw(reason)),
            Ok(sys::VIR_DOMAIN_CRASHED) => State::Crashed,
            Ok(sys::VIR_DOMAIN_PMSUSPENDED) => State::Asleep,
            _ => State::Unknown(state),
        }
    }
}

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $raw:path,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$vdoc])* $variant,)*
            /// libvirt does not say, or says something this program does not know.
            Unknown(i32),
        }

        impl $name {
            fn from_raw(reason: i32) -> Self {
                match u32::try_from(reason) {
                    $(Ok($raw) => $name::$variant,)*
                    _ => $name::Unknown(reason),
                }
            }
        }
    };
}

reasons! {
    /// Why a domain is paused.
    PausedReason {
        /// Somebody asked for it.
        User = sys::VIR_DOMAIN_PAUSED_USER,
        /// It is being migrated.
        Migration = sys::VIR_DOMAIN_PAUSED_MIGRATION,
        /// It is being saved.
        Save = sys::VIR_DOMAIN_PAUSED_SAVE,
        /// Its memory is being dumped.
        Dump = sys::VIR_DOMAIN_PAUSED_DUMP,
        /// A disk failed or is full. The guest is harmed until somebody acts.
        IoError = sys::VIR_DOMAIN_PAUSED_IOERROR,
        /// Its watchdog fired.
        Watchdog = sys::VIR_DOMAIN_PAUSED_WATCHDOG,
        /// Restored from a snapshot of a paused domain.
        FromSnapshot = sys::VIR_DOMAIN_PAUSED_FROM_SNAPSHOT,
        /// It is being shut down.
        ShuttingDown = sys::VIR_DOMAIN_PAUSED_SHUTTING_DOWN,
        /// A snapshot is being made.
        Snapshot = sys::VIR_DOMAIN_PAUSED_SNAPSHOT,
        /// The guest crashed.
        Crashed = sys::VIR_DOMAIN_PAUSED_CRASHED,
        /// It is being started.
        StartingUp = sys::VIR_DOMAIN_PAUSED_STARTING_UP,
        /// Post-copy migration.
        PostCopy = sys::VIR_DOMAIN_PAUSED_POSTCOPY,
        /// Post-copy migration broke.
        PostCopyFailed = sys::VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
        /// An API call failed half-way and left it paused.
        ApiError = sys::VIR_DOMAIN_PAUSED_API_ERROR,
    }
}

reasons! {
    /// Why a domain is off.
    ShutOffReason {
        /// The guest shut down.
        Shutdown = sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN,
        /// Somebody destroyed it.
        Destroyed = sys::VIR_DOMAIN_SHUTOFF_DESTROYED,
        /// It crashed.
        Crashed = sys::VIR_DOMAIN_SHUTOFF_CRASHED,
        /// It went to another host.
        Migrated = sys::VIR_DOMAIN_SHUTOFF_MIGRATED,
        /// Its memory is saved in a file; the disks are not at rest.
        Saved = sys::VIR_DOMAIN_SHUTOFF_SAVED,
        /// It could not start.
        Failed = sys::VIR_DOMAIN_SHUTOFF_FAILED,
        /// Reverted to a snapshot of a domain that was off.
        FromSnapshot = sys::VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT,
        /// The daemon decided.
        Daemon = sys::VIR_DOMAIN_SHUTOFF_DAEMON,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_error_is_told_from_a_pause_by_hand_and_the_unknown_stays_visible() {
        assert_eq!(
            State::from_raw((3, 5)),
            State::Paused(PausedReason::IoError)
        );
        assert_eq!(State::from_raw((3, 1)), State::Paused(PausedReason::User));
        assert_eq!(
            State::from_raw((3, 99)),
            State::Paused(PausedReason::Unknown(99))
        );
        assert_eq!(
            State::from_raw((5, 5)),
            State::ShutOff(ShutOffReason::Saved)
        );
        assert_eq!(State::from_raw((-1, 0)), State::Unknown(-1));
        assert_eq!(State::from_raw((0, 0)), State::Unknown(0));
    }
}
