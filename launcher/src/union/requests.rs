//! What another rlaunch asks the daemon of a container's unions for while the container runs: what it has written.
//!
//! The daemon alone can read a top that is in memory, alone knows which hard links are only noted, and is a member of the
//! user namespace whose owners the branches have. It listens on a socket in the container's own directory, which nobody
//! but its owner enters. A request is a line of JSON, and the descriptor of a pipe comes with it; the content goes there.
//! The answer is a line as well, and comes when the content is complete. A daemon that ends meanwhile hangs up.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, ErrorKind, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use unionfs::branch::work;
use unionfs::fs::Union;
use unionfs::options::Access;

use crate::failure::{Doing as _, Failure};
use crate::written::{self, NoLayer, UnionOf};

/// The socket in a container's directory.
const SOCKET: &str = "union";
/// The longest path of a socket; see unix(7).
const LONGEST_PATH: usize = 107;
const LONGEST_REQUEST: usize = 4096;
const LONGEST_ANSWER: u64 = 16 << 20;
/// Before the next try, where there are no descriptors for whoever asks.
const PAUSE: Duration = Duration::from_millis(100);
/// How often, and after which time, a daemon is looked for that does not listen yet.
const ATTEMPTS: u32 = 200;
const SHORT_PAUSE: Duration = Duration::from_millis(5);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// What became of what lies below the tops, of all unions, as `rlaunch diff` prints it.
    Changes,
    /// A branch of the union at `/` as a layer, over those below it.
    Layer {
        /// Which, counted from the top.
        branch: usize,
        /// No time in it is later than this, in seconds since 1970.
        latest: Option<i64>,
    },
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    /// The content is complete. What was left out of it, and why.
    Done(Vec<String>),
    /// Nobody reads it.
    Unread,
    Refused(String),
}

/// Where a container in this directory is asked.
pub(crate) fn socket_in(directory: &Path) -> PathBuf {
    directory.join(SOCKET)
}

/// The unions of a container, by where they are mounted in it.
pub(super) type Served = Vec<(PathBuf, Arc<Union>)>;

/// Listens at a path.
pub(super) fn listen(socket: &Path) -> io::Result<UnixListener> {
    at(socket, UnixListener::bind)
}

/// Answers until nobody holds the other end of `life` any more.
pub(super) fn answer_while(life: &OwnedFd, listener: Option<&UnixListener>, unions: &Arc<Served>) -> io::Result<()> {
    let listening = listener.map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN));
    let mut sources: Vec<PollFd<'_>> =
        [PollFd::new(life.as_fd(), PollFlags::POLLIN)].into_iter().chain(listening).collect();
    loop {
        poll(&mut sources, PollTimeout::NONE)?;
        if sources.first().is_none_or(|life| life.any().unwrap_or(true)) {
            return Ok(());
        }
        let Some(listener) = listener else { continue };
        let unions = Arc::clone(unions);
        // Whoever does not read what was asked for keeps nobody else from it, and not the daemon from its end.
        let answer = |client| thread::Builder::new().spawn(move || converse(client, &unions));
        if listener.accept().and_then(|(client, _)| answer(client)).is_err() {
            thread::sleep(PAUSE);
        }
    }
}

/// Answers one request. Whoever has hung up does not hear it.
fn converse(mut client: UnixStream, unions: &Served) {
    let Ok((request, content)) = receive(&client) else { return };
    let answer = match content_of(request, unions, content) {
        Ok(notes) => Answer::Done(notes),
        Err(NoLayer::Unread) => Answer::Unread,
        Err(NoLayer::Failed(failure)) => Answer::Refused(failure.to_string()),
    };
    if let Ok(mut line) = serde_json::to_vec(&answer) {
        line.push(b'\n');
        drop(client.write_all(&line));
    }
}

fn receive(client: &UnixStream) -> io::Result<(Request, OwnedFd)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; LONGEST_REQUEST];
    let received = recvmsg(client, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let content = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let request = serde_json::from_slice(bytes.get(..received).unwrap_or_default())?;
    Ok((request, content.ok_or(io::ErrorKind::InvalidData)?))
}

/// Writes what is asked for; what was left out of it.
fn content_of(request: Request, unions: &Served, content: OwnedFd) -> Result<Vec<String>, NoLayer> {
    let failed = |why: String| NoLayer::Failed(Failure::new(why));
    match request {
        Request::Changes => {
            unions.iter().for_each(|(_, union)| union.collect_writes());
            let unions: Vec<_> = unions.iter().map(|(place, union)| UnionOf::new(place, union.branches())).collect();
            let text = written::changes(&unions).map_err(|error| failed(error.to_string()))?;
            File::from(content).write_all(&text).map(|()| Vec::new()).map_err(|_| NoLayer::Unread)
        }
        Request::Layer { branch, latest } => {
            let root = unions.iter().find(|(place, _)| place == Path::new("/"));
            let (_, union) = root.ok_or_else(|| failed("there is no union at /".into()))?;
            settle(union).map_err(failed)?;
            written::layer(union.branches().get(branch..).unwrap_or_default(), None, content, latest)
        }
    }
}

/// Makes the tops stand alone: what the kernel has gathered is written, hard links that are only noted become real.
fn settle(union: &Union) -> Result<(), String> {
    let failed = |errno: rustix::io::Errno| io::Error::from(errno).to_string();
    union.collect_writes();
    let mut tops = union.branches().iter().filter(|branch| branch.access == Access::ReadWrite);
    let has_links = tops.any(|top| work::has_links(&top.path).unwrap_or(true));
    let pending = if has_links { union.flush_links().map_err(failed)?.pending } else { 0 };
    written::none_pending(pending)
}

/// A request that was made. Its content is to be read to the end before its answer is waited for.
#[derive(Debug)]
pub(crate) struct Asked(UnixStream);

impl Asked {
    /// Asks the daemon at a socket; what is asked for goes to `content`.
    ///
    /// # Errors
    /// Where nobody listens there.
    pub(crate) fn of(socket: &Path, request: Request, content: OwnedFd) -> Result<Asked, Failure> {
        let doing = "ask the daemon of the container's union";
        let connection = connect(socket).doing(doing)?;
        let line = serde_json::to_vec(&request).map_err(|error| Failure::because(doing, error))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptor = [content.as_fd()];
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptor));
        sendmsg(&connection, &[IoSlice::new(&line)], &mut ancillary, SendFlags::NOSIGNAL)
            .map_err(io::Error::from)
            .doing(doing)?;
        Ok(Asked(connection))
    }

    /// Waits for the end; what was left out.
    ///
    /// # Errors
    /// Why the content is not complete.
    pub(crate) fn finish(self) -> Result<Vec<String>, NoLayer> {
        let doing = "read what the container has written";
        let mut line = Vec::new();
        let read = BufReader::new(self.0.take(LONGEST_ANSWER)).read_until(b'\n', &mut line).doing(doing);
        read.map_err(NoLayer::Failed)?;
        match serde_json::from_slice(&line) {
            Ok(Answer::Done(notes)) => Ok(notes),
            Ok(Answer::Unread) => Err(NoLayer::Unread),
            Ok(Answer::Refused(why)) => Err(NoLayer::Failed(Failure::new(why))),
            Err(_) => Err(NoLayer::Failed(Failure::because(doing, "it has ended meanwhile"))),
        }
    }
}

/// A daemon listens a little later than its container runs.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let mut tries = ATTEMPTS;
    loop {
        match at(socket, UnixStream::connect) {
            Err(error) if tries > 0 && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                tries -= 1;
                thread::sleep(SHORT_PAUSE);
            }
            result => return result,
        }
    }
}

/// Does something with a socket at a path of any length.
fn at<T>(socket: &Path, act: impl Fn(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let (Some(around), Some(name)) = (socket.parent(), socket.file_name()) else { return act(socket.to_owned()) };
    if socket.as_os_str().as_bytes().len() <= LONGEST_PATH {
        return act(socket.to_owned());
    }
    let directory = fs::File::open(around)?;
    act(Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_may_lie_deep() {
        let place = tempfile::tempdir().unwrap();
        for name in ["short".to_owned(), "long".repeat(60)] {
            let directory = place.path().join(name);
            fs::create_dir(&directory).unwrap();
            let socket = socket_in(&directory);
            let listener = listen(&socket).unwrap();
            let (reader, writer) = io::pipe().unwrap();
            let request = Request::Layer { branch: 3, latest: Some(-7) };
            let asked = Asked::of(&socket, request, writer.into()).unwrap();
            let (client, _) = listener.accept().unwrap();
            let (heard, content) = receive(&client).unwrap();
            assert_eq!(heard, request);
            File::from(content).write_all(b"content").unwrap();
            assert_eq!(io::read_to_string(reader).unwrap(), "content");
            drop(client);
            let Err(NoLayer::Failed(failure)) = asked.finish() else { panic!("nobody has answered") };
            assert!(failure.to_string().ends_with("it has ended meanwhile"));
        }
    }
}
