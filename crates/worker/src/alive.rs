//! Signs of life for systemd, which ends a service that gives none.

use std::os::unix::net::UnixDatagram;

/// Says `state` (`READY=1`, `WATCHDOG=1`) to systemd: sd_notify(3). Without systemd it says nothing.
pub(crate) fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    // Nobody to tell about a failure; systemd restarts a service that it does not hear.
    let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(state.as_bytes(), path));
}
