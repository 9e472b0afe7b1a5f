//! The control socket of a daemon: how `runionfs show`, `stats`, `flush` and others ask it.
//!
//! A Unix socket, named by the device number of the mount, in a directory that is its owner's
//! alone. A request is one line with a word, the answer is one line of JSON. Only root and the
//! user that the daemon runs as are answered.

pub mod client;
mod place;
pub mod statistics;
pub mod status;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use crate::branch::hold::BranchId;
use crate::mount::DeviceNumber;
use place::Place;
pub use statistics::{BranchSpace, Statistics};
pub use status::{Status, Text};

/// The longest request line.
const LONGEST_REQUEST: u64 = 4096;
/// Who connects while this many are connected is turned away.
const MOST_CLIENTS: usize = 32;

/// What a daemon is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Its [`Status`].
    Show,
    /// Its [`Statistics`].
    Stats,
    /// To flush hard links; the answer is a [`Flushed`](crate::fs::Flushed).
    Flush,
    /// Whether it holds this branch.
    Holds(BranchId),
    /// To let this branch go, if nobody can reach its mount any more.
    GiveWay(BranchId),
}

impl Request {
    /// The line that asks for it.
    fn line(self) -> String {
        let about = |word: &str, branch: BranchId| format!("{word} {} {}\n", branch.device, branch.inode);
        match self {
            Request::Show => "show\n".into(),
            Request::Stats => "stats\n".into(),
            Request::Flush => "flush\n".into(),
            Request::Holds(branch) => about("holds", branch),
            Request::GiveWay(branch) => about("give-way", branch),
        }
    }

    fn read(line: &[u8]) -> Option<Request> {
        let mut words = std::str::from_utf8(line).ok()?.split(' ');
        let word = words.next()?;
        let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
        match (word, &numbers[..]) {
            ("show", []) => Some(Request::Show),
            ("stats", []) => Some(Request::Stats),
            ("flush", []) => Some(Request::Flush),
            ("holds", &[device, inode]) => Some(Request::Holds(BranchId { device, inode })),
            ("give-way", &[device, inode]) => Some(Request::GiveWay(BranchId { device, inode })),
            _ => None,
        }
    }
}

/// An answer that says why there is none.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// Why not.
    pub(crate) error: String,
}

type Answerer = dyn Fn(Request) -> io::Result<Vec<u8>> + Send + Sync;

/// The socket of this daemon. Dropping it removes it; its threads end with the process.
#[derive(Debug)]
pub struct Control {
    place: Place,
}

impl Control {
    /// Opens the socket for the mount with this device number. `answer` makes the answers, each a
    /// line of JSON; it may take its time.
    ///
    /// A socket of the same name is stale: while our file system lives, no other has its number.
    pub fn open(
        device: DeviceNumber,
        answer: impl Fn(Request) -> io::Result<Vec<u8>> + Send + Sync + 'static,
    ) -> io::Result<Control> {
        let (place, listener) = Place::bind(device)?;
        let answer: Arc<Answerer> = Arc::new(answer);
        thread::Builder::new().name("control".into()).spawn(move || accept(&listener, &answer))?;
        Ok(Control { place })
    }

    /// Removes the socket, for who ends the process without dropping what it owns.
    pub fn remove(&self) -> io::Result<()> {
        self.place.remove()
    }
}

/// Answers each client in a thread of its own, so that none waits for another.
fn accept(listener: &UnixListener, answer: &Arc<Answerer>) {
    let clients = Arc::new(AtomicUsize::new(0));
    for client in listener.incoming() {
        let client = match client {
            Ok(client) => client,
            Err(error) => {
                tracing::warn!("control socket: cannot accept: {error}");
                // out of descriptors, most likely: it would fail again at once
                thread::sleep(std::time::Duration::from_millis(100));
                continue;
            }
        };
        let slot = Slot::take(&clients);
        if clients.load(Ordering::Relaxed) > MOST_CLIENTS {
            continue;
        }
        let answer = Arc::clone(answer);
        let spawned = thread::Builder::new().name("control-client".into()).spawn(move || {
            let _slot = slot;
            if let Err(error) = converse(&client, &*answer) {
                tracing::debug!("control socket: {error}");
            }
        });
        if let Err(error) = spawned {
            tracing::warn!("control socket: no thread for a client: {error}");
        }
    }
}

/// One of the connected clients, counted while it lives.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(clients: &Arc<AtomicUsize>) -> Slot {
        clients.fetch_add(1, Ordering::Relaxed);
        Slot(Arc::clone(clients))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers the requests of one client until it hangs up.
fn converse(client: &UnixStream, answer: &Answerer) -> io::Result<()> {
    let peer = getsockopt(client, PeerCredentials)?.uid();
    if peer != 0 && peer != geteuid().as_raw() {
        return Err(io::Error::other(format!("user {peer} is not answered")));
    }
    let mut reader = BufReader::new(client);
    loop {
        let mut line = Vec::new();
        reader.by_ref().take(LONGEST_REQUEST).read_until(b'\n', &mut line)?;
        let Some(word) = line.strip_suffix(b"\n") else { return Ok(()) };
        let answered = match Request::read(word) {
            Some(request) => answer(request),
            None => Err(io::Error::other("unknown request")),
        };
        let line = answered.or_else(|error| to_line(&Refusal { error: error.to_string() }))?;
        (&mut &*client).write_all(&line)?;
    }
}

/// A value as one line of JSON.
pub fn to_line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written_and_nothing_else_is_one() {
        let branch = BranchId { device: u64::MAX, inode: 7 };
        let all = [Request::Show, Request::Stats, Request::Flush, Request::Holds(branch), Request::GiveWay(branch)];
        for request in all {
            assert_eq!(
                request.line().strip_suffix('\n').map(|line| Request::read(line.as_bytes())),
                Some(Some(request))
            );
        }
        for line in ["", "show 1", "holds", "holds 1", "holds 1 -2", "holds 1 2 3", "give-way 1  2", "\u{e4}", "Show"] {
            assert_eq!(Request::read(line.as_bytes()), None, "{line}");
        }
    }
}
