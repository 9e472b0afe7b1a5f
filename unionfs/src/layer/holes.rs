//! Writing what has long rows of zeros: they become holes, which take no room on the disk, as with `cp --sparse=always`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::io::Errno;

/// Holes are made of whole blocks of a file. Most file systems have these; with others holes are a little smaller.
const BLOCK: usize = 4096;
/// For shorter rows a further write, and a file in more pieces, cost more than what they take.
const SHORTEST: usize = 8 * BLOCK;

/// Writes some bytes to a place in a new file. Returns whether they end in a hole, so that nobody has said yet how long the
/// file is.
///
/// # Errors
/// Where they cannot be written.
pub(super) fn write_at(file: impl AsFd, bytes: &[u8], mut at: u64) -> Result<bool, Errno> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let (data, hole) = next(rest, at);
        write_all_at(&file, &rest[..data], at)?;
        at += (data + hole) as u64;
        rest = &rest[data + hole..];
        if rest.is_empty() {
            return Ok(hole > 0);
        }
    }
    Ok(false)
}

/// How many bytes are to be written at a place, and how many zeros follow that are not.
fn next(bytes: &[u8], at: u64) -> (usize, usize) {
    let to_block = (BLOCK - (at % BLOCK as u64) as usize) % BLOCK;
    let mut begin = to_block.min(bytes.len());
    while begin + SHORTEST <= bytes.len() {
        let zeros = bytes[begin..].chunks_exact(BLOCK).take_while(|block| is_zero(block)).count() * BLOCK;
        if zeros >= SHORTEST {
            return (begin, zeros);
        }
        begin += zeros + BLOCK;
    }
    (bytes.len(), 0)
}

/// What is data shows that within a few bytes, most often.
fn is_zero(block: &[u8]) -> bool {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    block.starts_with(&[0; 16]) && *block == ZEROS
}

fn write_all_at(file: &impl AsFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Err(Errno::INTR) => {}
            Ok(0) => return Err(Errno::NOSPC),
            written => {
                let written = written?;
                bytes = &bytes[written..];
                at += written as u64;
            }
        }
    }
    Ok(())
}

/// A new file that is written from its beginning. It has its length once it is flushed.
#[derive(Debug)]
pub struct WithHoles {
    file: File,
    at: u64,
    ends_in_hole: bool,
}

impl WithHoles {
    /// Of an empty file.
    #[must_use]
    pub fn new(file: File) -> WithHoles {
        WithHoles { file, at: 0, ends_in_hole: false }
    }
}

impl Write for WithHoles {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.ends_in_hole = write_at(&self.file, bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.ends_in_hole { self.file.set_len(self.at) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufWriter;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn long_rows_of_zeros_are_left_out_at_blocks_of_the_file() {
        let block = BLOCK as u64;
        for (data, zeros, at, expected) in [
            (0, SHORTEST, 0, (0, SHORTEST)),
            (0, SHORTEST - 1, 0, (SHORTEST - 1, 0)),
            (0, SHORTEST + 5, 0, (0, SHORTEST)),
            (1, 2 * SHORTEST, 0, (BLOCK, 2 * SHORTEST - BLOCK)),
            (BLOCK, SHORTEST, 7 * block, (BLOCK, SHORTEST)),
            (0, SHORTEST + BLOCK, 1, (BLOCK - 1, SHORTEST)),
            (0, SHORTEST, 1, (SHORTEST, 0)),
            (100, 0, 0, (100, 0)),
        ] {
            let bytes = [vec![7; data], vec![0; zeros]].concat();
            assert_eq!(next(&bytes, at), expected, "{data} {zeros} {at}");
        }
    }

    /// Whatever is written in whatever pieces, the file is that.
    #[test]
    fn what_is_written_is_what_is_read() {
        let contents = [
            vec![0; 1 << 20],
            [vec![1; 3], vec![0; 1 << 20], vec![2; 3]].concat(),
            [vec![0; 300_000], vec![9; 5000], vec![0; 300_001]].concat(),
            [vec![0; SHORTEST - 1], vec![1], vec![0; SHORTEST]].concat(),
            vec![5],
            Vec::new(),
        ];
        for content in contents {
            for piece in [1000, 4096, 65_536, 262_144] {
                let file = tempfile::NamedTempFile::new().unwrap();
                let mut writer = BufWriter::with_capacity(65_536, WithHoles::new(file.reopen().unwrap()));
                content.chunks(piece).for_each(|bytes| writer.write_all(bytes).unwrap());
                writer.flush().unwrap();
                assert!(std::fs::read(file.path()).unwrap() == content, "{} in {piece}", content.len());
                let taken = file.as_file().metadata().unwrap().blocks() * 512;
                assert!(content.len() < 1 << 19 || taken < 200_000, "{taken} of {} in {piece}", content.len());
            }
        }
    }
}
