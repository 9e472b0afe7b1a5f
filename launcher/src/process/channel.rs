//! The channel between the parent and the child: a socket that keeps messages apart.
//!
//! It closes on exec, so its end tells the parent that the command runs.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, SocketFlags, SocketType, recvmsg, sendmsg, shutdown, socketpair,
};

/// What is said on the channel.
#[derive(Debug)]
pub(crate) enum Message {
    /// To the child: go on.
    Go,
    /// To the parent: the union is mounted and can be served.
    Mounted,
    /// To the parent: the master of the container's terminal.
    Terminal(OwnedFd),
    /// To the parent: the file system that tells what it may use is mounted and can be served.
    View,
    /// To the parent: the step of this number failed, and the container does without it.
    Warning(u32, Errno),
    /// To the parent: the step of this number failed, and that is the end.
    Failed(u32, Errno),
    /// From the union's daemon: the branches are open, it can be mounted.
    Opened,
    /// From the union's daemon: it answers requests from now on.
    Serving,
    /// From the union's daemon, at its end: a top has no space left.
    Full,
    /// From the union's daemon: it cannot do its work, and why.
    Refused(String),
}

/// One end of the channel.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// A tag, and what belongs to it; longer texts are cut.
const LONGEST: usize = 4096;

impl Channel {
    /// Makes a channel: the parent's end and the child's.
    pub(crate) fn pair() -> Result<(Channel, Channel), Errno> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(errno)?;
        Ok((Channel(ours), Channel(theirs)))
    }

    pub(crate) fn send(&self, message: &Message) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptor;
        if let Message::Terminal(master) = message {
            descriptor = [master.as_fd()];
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptor));
        }
        let bytes = encode(message);
        sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL).map_err(errno)?;
        Ok(())
    }

    /// Says that there is nothing more to say. What the other side says is still heard.
    pub(crate) fn finish(&self) -> Result<(), Errno> {
        shutdown(&self.0, Shutdown::Write).map_err(errno)
    }

    /// Whether nobody has the other end any more.
    pub(crate) fn is_closed(&self) -> Result<bool, Errno> {
        let mut source = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        poll(&mut source, PollTimeout::ZERO)?;
        Ok(source.iter().any(|source| source.any().unwrap_or(true)))
    }

    /// Waits for a message; `None` when the other end is closed.
    pub(crate) fn receive(&self) -> Result<Option<Message>, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; LONGEST];
        let received = loop {
            let mut buffers = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.0, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                // The other end was killed with a message of ours unread.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                result => break result.map_err(errno)?.bytes,
            }
        };
        let mut descriptors = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        match bytes.get(..received).and_then(<[u8]>::split_first) {
            None => Ok(None),
            Some((tag, rest)) => decode(*tag, rest, descriptors.next()).ok_or(Errno::EBADMSG).map(Some),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

fn encode(message: &Message) -> Vec<u8> {
    let step = |tag: u8, number: &u32, errno: &Errno| {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&number.to_ne_bytes());
        bytes.extend_from_slice(&(*errno as i32).to_ne_bytes());
        bytes
    };
    match message {
        Message::Go => vec![b'g'],
        Message::Mounted => vec![b'm'],
        Message::Terminal(_) => vec![b't'],
        Message::View => vec![b'v'],
        Message::Warning(number, errno) => step(b'w', number, errno),
        Message::Failed(number, errno) => step(b'f', number, errno),
        Message::Opened => vec![b'o'],
        Message::Serving => vec![b's'],
        Message::Full => vec![b'F'],
        Message::Refused(why) => [b"r", why.as_bytes()].concat().into_iter().take(LONGEST).collect(),
    }
}

fn decode(tag: u8, rest: &[u8], descriptor: Option<OwnedFd>) -> Option<Message> {
    match tag {
        b'g' => Some(Message::Go),
        b'm' => Some(Message::Mounted),
        b't' => descriptor.map(Message::Terminal),
        b'v' => Some(Message::View),
        b'w' => decode_step(rest).map(|(number, errno)| Message::Warning(number, errno)),
        b'f' => decode_step(rest).map(|(number, errno)| Message::Failed(number, errno)),
        b'o' => Some(Message::Opened),
        b's' => Some(Message::Serving),
        b'F' => Some(Message::Full),
        b'r' => Some(Message::Refused(String::from_utf8_lossy(rest).into_owned())),
        _ => None,
    }
}

fn decode_step(bytes: &[u8]) -> Option<(u32, Errno)> {
    let (number, errno) = bytes.split_first_chunk()?;
    let errno = i32::from_ne_bytes(errno.try_into().ok()?);
    Some((u32::from_ne_bytes(*number), Errno::from_raw(errno)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    #[test]
    fn messages_arrive_as_they_were_sent_and_apart() {
        let (parent, child) = Channel::pair().unwrap();
        child.send(&Message::Mounted).unwrap();
        child.send(&Message::Warning(7, Errno::ENOENT)).unwrap();
        child.send(&Message::Failed(u32::MAX, Errno::ELOOP)).unwrap();
        parent.send(&Message::Go).unwrap();
        assert!(matches!(child.receive(), Ok(Some(Message::Go))));
        assert!(matches!(parent.receive(), Ok(Some(Message::Mounted))));
        assert!(matches!(parent.receive(), Ok(Some(Message::Warning(7, Errno::ENOENT)))));
        assert!(matches!(parent.receive(), Ok(Some(Message::Failed(u32::MAX, Errno::ELOOP)))));
    }

    #[test]
    fn long_reasons_are_cut() {
        let (parent, child) = Channel::pair().unwrap();
        child.send(&Message::Refused("x".repeat(LONGEST * 2))).unwrap();
        child.send(&Message::Refused("short".to_owned())).unwrap();
        let Ok(Some(Message::Refused(long))) = parent.receive() else { panic!("no reason") };
        assert_eq!(long, "x".repeat(LONGEST - 1));
        let Ok(Some(Message::Refused(short))) = parent.receive() else { panic!("no reason") };
        assert_eq!(short, "short");
    }

    #[test]
    fn the_end_is_told_apart_from_a_message() {
        let (parent, child) = Channel::pair().unwrap();
        child.send(&Message::Mounted).unwrap();
        drop(child);
        assert!(matches!(parent.receive(), Ok(Some(Message::Mounted))));
        assert!(matches!(parent.receive(), Ok(None)));
        assert_eq!((parent.is_closed(), parent.send(&Message::Go)), (Ok(true), Err(Errno::EPIPE)));
    }

    #[test]
    fn who_has_said_everything_still_hears() {
        let (parent, child) = Channel::pair().unwrap();
        parent.send(&Message::Go).unwrap();
        parent.finish().unwrap();
        assert_eq!(child.is_closed(), Ok(false));
        child.send(&Message::Full).unwrap();
        assert!(matches!(child.receive(), Ok(Some(Message::Go))));
        assert!(matches!(child.receive(), Ok(None)));
        assert!(matches!(parent.receive(), Ok(Some(Message::Full))));
    }

    #[test]
    fn a_descriptor_is_passed_on() {
        let (parent, child) = Channel::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        child.send(&Message::Terminal(writer.into())).unwrap();
        let Ok(Some(Message::Terminal(descriptor))) = parent.receive() else { panic!("no descriptor") };
        File::from(descriptor).write_all(b"hello").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
}
