//! fusermount3(1): the set-user-id helper that mounts for those who may not.
//!
//! It opens the device, mounts it, and sends the descriptor over the socket that
//! `_FUSE_COMMFD` names. The socket is its standard input, so that no other descriptor has to
//! outlive the exec.

use std::ffi::{OsStr, OsString};
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::mount::MsFlags;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};

use super::{MountError, MountOptions, shortened};

/// Mounts by fusermount3 and receives the device.
pub(super) fn mount(target: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    run(target, options).map_err(|reason| MountError::Fusermount { path: target.to_path_buf(), reason })
}

fn run(target: &Path, options: &MountOptions) -> Result<OwnedFd, String> {
    let (ours, theirs) = UnixStream::pair().map_err(|error| format!("no socket: {error}"))?;
    let mut child = Command::new("fusermount3")
        .arg("-o")
        .arg(words(options))
        .arg("--")
        .arg(target)
        .env("_FUSE_COMMFD", "0")
        .env_remove("NOTIFY_SOCKET")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("fusermount3 cannot be run: {error} (install fuse3, or mount as root)"))?;
    let device = receive(&ours);
    let said = finish(&mut child)?;
    device.map_err(|error| if said.is_empty() { format!("fusermount3 sent no device: {error}") } else { said })
}

/// Waits for its end; what it said on the way.
fn finish(child: &mut Child) -> Result<String, String> {
    let mut said = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_end(&mut said).map_err(|error| format!("cannot read what fusermount3 says: {error}"))?;
    }
    child.wait().map_err(|error| format!("cannot wait for fusermount3: {error}"))?;
    Ok(String::from_utf8_lossy(&said).trim().replace('\n', "; "))
}

fn receive(socket: &UnixStream) -> Result<OwnedFd, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    loop {
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Ok(message) if message.flags.contains(ReturnFlags::CTRUNC) => return Err(Errno::BADMSG),
            Ok(_) => break,
            Err(error) => return Err(error),
        }
    }
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .ok_or(Errno::NOMSG)
}

/// The options as fusermount3 takes them. nosuid and nodev it adds by itself.
fn words(options: &MountOptions) -> OsString {
    let mut words = b"default_permissions".to_vec();
    if !options.subtype.is_empty() {
        words.extend(b",subtype=");
        words.extend(escaped(&options.subtype));
    }
    if options.allow_other {
        words.extend(b",allow_other");
    }
    for (flag, word) in FLAGS {
        if options.flags.contains(*flag) {
            words.push(b',');
            words.extend(word.as_bytes());
        }
    }
    words.extend(b",fsname=");
    words.extend(escaped(&shortened(&options.source)));
    OsString::from_vec(words)
}

fn escaped(value: &OsStr) -> Vec<u8> {
    let escape = |byte: &u8| matches!(byte, b',' | b'\\').then_some(b'\\');
    value.as_bytes().iter().flat_map(|byte| escape(byte).into_iter().chain([*byte])).collect()
}

const FLAGS: &[(MsFlags, &str)] = &[
    (MsFlags::MS_RDONLY, "ro"),
    (MsFlags::MS_NOEXEC, "noexec"),
    (MsFlags::MS_NOATIME, "noatime"),
    (MsFlags::MS_NODIRATIME, "nodiratime"),
    (MsFlags::MS_SYNCHRONOUS, "sync"),
    (MsFlags::MS_DIRSYNC, "dirsync"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_written_as_fusermount3_reads_them() {
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
        let options = MountOptions::new(r"/a,b=rw:/c\:d=ro".into(), flags, true);
        assert_eq!(words(&options), r"default_permissions,subtype=runionfs,allow_other,ro,fsname=/a\,b=rw:/c\\:d=ro");
        let plain = MountOptions { subtype: OsString::new(), ..MountOptions::new("x".into(), flags, false) };
        assert_eq!(words(&plain), "default_permissions,ro,fsname=x");
    }
}
