//! A process that tries something, says in a few bytes what came of it, and ends with all that it made.

use std::fs::File;
use std::io::{Read as _, Write as _};

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use rustix::io::Errno;

use crate::process::{Side, fork};

/// Lets a copy of this process do something; what it tells.
///
/// # Errors
/// That of the attempt, of fork(2) or pipe(2).
pub(super) fn attempt(act: impl FnOnce() -> Result<Vec<u8>, Errno>) -> Result<Vec<u8>, Errno> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match fork().map_err(|error| errno_of(&error))? {
        Side::Child => {
            drop(reader);
            let said = match act() {
                Ok(told) => [vec![0], told].concat(),
                Err(errno) => errno.raw_os_error().to_ne_bytes().into_iter().fold(vec![1], |mut all, byte| {
                    all.push(byte);
                    all
                }),
            };
            // whoever does not hear it sees that nothing came
            let status = i32::from(File::from(writer).write_all(&said).is_err());
            std::process::exit(status);
        }
        Side::Parent(child) => {
            drop(writer);
            let mut said = Vec::new();
            let read = File::from(reader).read_to_end(&mut said).map_err(|error| errno_of(&error));
            while waitpid(child, None) == Err(nix::errno::Errno::EINTR) {}
            read?;
            match said.split_first() {
                Some((0, told)) => Ok(told.to_vec()),
                Some((_, errno)) => {
                    Err(errno.first_chunk().map_or(Errno::IO, |raw| Errno::from_raw_os_error(i32::from_ne_bytes(*raw))))
                }
                None => Err(Errno::IO),
            }
        }
    }
}

/// Makes this process root of namespaces of its own, in which it may mount: of users too, where it is not root.
pub(super) fn enter_namespaces(of_users: bool) -> Result<(), Errno> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let users = if of_users { CloneFlags::CLONE_NEWUSER } else { CloneFlags::empty() };
    unshare(users | CloneFlags::CLONE_NEWNS).map_err(|error| Errno::from_raw_os_error(error as i32))?;
    if of_users {
        let write = |name: &str, text: String| std::fs::write(format!("/proc/self/{name}"), text);
        // before Linux 3.19 there is no such file, and no need
        match write("setgroups", "deny".to_owned()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            written => written.map_err(|error| errno_of(&error))?,
        }
        write("uid_map", format!("0 {uid} 1")).map_err(|error| errno_of(&error))?;
        write("gid_map", format!("0 {gid} 1")).map_err(|error| errno_of(&error))?;
    }
    let flags = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|error| Errno::from_raw_os_error(error as i32))
}

pub(super) fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
