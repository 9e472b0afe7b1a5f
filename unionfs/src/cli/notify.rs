//! Telling the service manager that a mount serves, as `sd_notify(3)` does, so that a unit of `Type=notify` is
//! started when the union is there and not before.
//!
//! Only a command that is itself the main process of a service tells anything: what mounts for somebody else (podman,
//! mount(8)) may well have inherited the socket of a service that is another's to call ready.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::unistd::Pid;

/// Where the manager listens.
const SOCKET: &str = "NOTIFY_SOCKET";
/// The process that the manager has started, where it says so (systemd.exec(5)).
const STARTED: &str = "SYSTEMD_EXEC_PID";

/// Who wants to know how a service is.
#[derive(Debug, Clone, Default)]
pub(super) struct Manager(Option<SocketAddr>);

impl Manager {
    /// The one that has started this process, if there is one.
    pub(super) fn of_this_process() -> Manager {
        let is_meant = match std::env::var(STARTED) {
            Ok(started) => started == Pid::this().to_string(),
            Err(_) => true,
        };
        let socket = std::env::var_os(SOCKET).filter(|socket| is_meant && !socket.is_empty());
        Manager(socket.and_then(|socket| {
            address(&socket).inspect_err(|error| tracing::warn!(?socket, "{SOCKET} cannot be used: {error}")).ok()
        }))
    }

    /// The mount serves.
    pub(super) fn ready(&self) {
        self.tell("READY=1\n");
    }

    /// The mount serves, by a process that is the service from now on.
    pub(super) fn ready_as(&self, daemon: Pid) {
        self.tell(&format!("MAINPID={daemon}\nREADY=1\n"));
    }

    /// The mount is about to end.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1\n");
    }

    /// A manager that is not told finds out by itself in the end: that is no reason to end a mount.
    fn tell(&self, state: &str) {
        let Manager(Some(address)) = self else { return };
        let told = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.send_to_addr(state.as_bytes(), address)
        });
        if let Err(error) = told {
            tracing::warn!("cannot tell the service manager {}: {error}", state.trim_end().replace('\n', ", "));
        }
    }
}

/// A path, or a name in the abstract namespace after `@`.
fn address(socket: &OsString) -> io::Result<SocketAddr> {
    match socket.as_bytes().split_first() {
        Some((b'/', _)) => SocketAddr::from_pathname(socket),
        Some((b'@', name)) => SocketAddr::from_abstract_name(name),
        _ => Err(io::Error::other("neither a path nor a name after @")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_a_path_or_a_name() {
        assert_eq!(address(&"/run/notify".into()).unwrap().as_pathname().unwrap().to_str(), Some("/run/notify"));
        assert_eq!(address(&"@notify".into()).unwrap().as_abstract_name(), Some(&b"notify"[..]));
        assert!(address(&"vsock:2:1234".into()).is_err());
        assert!(address(&format!("/{}", "long".repeat(50)).into()).is_err());
    }
}
