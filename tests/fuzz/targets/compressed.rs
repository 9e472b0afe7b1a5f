//! Layers as registries have them: what they hold does not depend on the pieces in which they are read, and a bomb takes no
//! memory.
#![no_main]

use std::io::{self, Read};

use fuzz::seeds;
use libfuzzer_sys::fuzz_target;
use unionfs::layer::compressed;

#[path = "../../support/archives.rs"]
mod archives;

/// What is read of a bomb.
const MOST: u64 = 16 << 20;

fuzz_target!(init: begin(), |bytes: &[u8]| {
    let whole = read(bytes, 64 << 10);
    let in_pieces = read(InPieces(bytes), 777);
    assert_eq!(whole, in_pieces, "what is read depends on the pieces");
});

/// What comes until the end or an error, as its length and a sum, and whether there was an error.
fn read(input: impl Read, piece: usize) -> (u64, u64, bool) {
    let (mut length, mut sum) = (0, 0_u64);
    let Ok(mut plain) = compressed::plain(input) else { return (0, 0, true) };
    let mut buffer = vec![0; piece];
    while length < MOST {
        let wanted = usize::try_from(MOST - length).map_or(piece, |left| left.min(piece));
        match plain.read(&mut buffer[..wanted]) {
            Ok(0) => return (length, sum, false),
            Ok(read) => {
                length += read as u64;
                sum = buffer[..read].iter().fold(sum, |sum, byte| sum.rotate_left(5) ^ u64::from(*byte));
            }
            // How much comes before an error is nobody's business.
            Err(_) => return (0, 0, true),
        }
    }
    (length, sum, false)
}

/// A connection that gives a few bytes at a time, and is interrupted.
struct InPieces<'a>(&'a [u8]);

impl Read for InPieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(3);
        self.0.read(&mut buffer[..length])
    }
}

fn begin() {
    let plain = archives::archive(&[archives::file("a", &"content ".repeat(300))]);
    let window = [&[0x28, 0xB5, 0x2F, 0xFD, 0, 15 << 3][..], &[0x21, 0, 0], b"four"].concat();
    let bomb = [&[0x28, 0xB5, 0x2F, 0xFD, 0, 15 << 3][..], &[2, 0, 0x10, b'x'].repeat(200), &[1, 0, 0]].concat();
    let skipped = [&[0x50, 0x2A, 0x4D, 0x18, 4, 0, 0, 0][..], b"skip", &seeds::zstd(b"content")].concat();
    let twice = [seeds::gzip(&plain[..100]), seeds::gzip(&plain[100..])].concat();
    let all = [plain.clone(), seeds::gzip(&plain), seeds::zstd(&plain), twice, window, bomb, skipped];
    seeds::write("compressed", all.iter().map(Vec::as_slice));
}
