//! Content that one thread reads and another one takes, a few pieces ahead. Pieces come back when
//! they are taken and are filled again.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use unionfs::layer::compressed::fill;

/// Size and number of the pieces under way.
const PIECE: usize = 256 * 1024;
const PIECES: usize = 4;

/// Both ends.
pub(super) fn pieces() -> (Sending, Received) {
    let (full, taken) = sync_channel(PIECES);
    let (back, empty) = channel();
    (Sending { full, empty }, Received { taken, back, piece: Piece::default(), at: 0 })
}

#[derive(Debug, Default)]
struct Piece {
    bytes: Vec<u8>,
    /// So many of them count.
    length: usize,
}

/// Where content is sent from.
pub(super) struct Sending {
    full: SyncSender<Piece>,
    empty: Receiver<Vec<u8>>,
}

impl Sending {
    /// Sends what is read to the end, or until nobody receives it any more: who does not has failed, and tells that, or
    /// has seen the end.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn send(&self, input: &mut impl Read) -> io::Result<()> {
        loop {
            let mut bytes = self.empty.try_recv().unwrap_or_else(|_| vec![0; PIECE]);
            let length = fill(input, &mut bytes)?;
            if length == 0 || self.full.send(Piece { bytes, length }).is_err() {
                return Ok(());
            }
        }
    }
}

/// What another thread sends.
pub(super) struct Received {
    taken: Receiver<Piece>,
    back: Sender<Vec<u8>>,
    piece: Piece,
    at: usize,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.length {
            // The sender has ended: so does this.
            let Ok(piece) = self.taken.recv() else { return Ok(0) };
            let done = std::mem::replace(&mut self.piece, piece);
            self.at = 0;
            if !done.bytes.is_empty() {
                // Where the sender has ended, nobody needs it.
                self.back.send(done.bytes).ok();
            }
        }
        let mut rest = &self.piece.bytes[self.at..self.piece.length];
        let read = rest.read(buffer)?;
        self.at += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a little at a time, and is interrupted now and then.
    struct Slow<'a>(&'a [u8], bool);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let most = buffer.len().min(100_000);
            self.0.read(&mut buffer[..most])
        }
    }

    #[test]
    fn all_that_is_sent_is_received_in_its_order() {
        let content: Vec<u8> = (0..20 * PIECE + 17).map(|at| (at / 1000 + at) as u8).collect();
        let (sending, mut received) = pieces();
        let mut found = Vec::new();
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| {
                let sending = sending;
                sending.send(&mut Slow(&content, false))
            });
            received.read_to_end(&mut found).unwrap();
            sent.join().unwrap().unwrap();
        });
        assert!(found == content, "{} bytes of {}", found.len(), content.len());
    }

    #[test]
    fn who_sends_ends_when_nobody_receives() {
        let (sending, received) = pieces();
        drop(received);
        sending.send(&mut io::repeat(7)).unwrap();
    }
}
