//! Digests, by which everything in an image is named, and what computes them while bytes pass.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const ALGORITHM: &str = "sha256";

/// The SHA-256 of some content, written `sha256:` and 64 hexadecimal digits; see the OCI image specification, "Digests".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    /// That of some bytes.
    pub(crate) fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The 64 digits alone, which are a file's name in layouts and in the store.
    pub(crate) fn hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a string does not fail.
            write!(text, "{byte:02x}").map_or_else(|_| String::new(), |()| text)
        })
    }

    /// What is shown in tables.
    pub(crate) fn short(&self) -> String {
        self.hex().chars().take(12).collect()
    }

    /// Reads the 64 digits alone.
    pub(crate) fn from_hex(text: &str) -> Option<Digest> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 64 || !text.bytes().all(is_digit) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
        }
        Some(Digest(bytes))
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Digest, String> {
        let digest = text.split_once(':').filter(|(algorithm, _)| *algorithm == ALGORITHM);
        digest.and_then(|(_, hex)| Digest::from_hex(hex)).ok_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            format!("'{}' is no digest of the form sha256:HEX", shown.escape_debug())
        })
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Digest, String> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{ALGORITHM}:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A reader that computes the digest and the length of what passes, and writes a copy of it where one is wanted.
pub(crate) struct Digesting<R, W> {
    input: R,
    copy: W,
    hasher: Sha256,
    length: u64,
    /// More than this is an error.
    most: u64,
}

impl<R: Read, W: Write> Digesting<R, W> {
    /// Of an input that has at most `most` bytes.
    pub(crate) fn new(input: R, copy: W, most: u64) -> Self {
        Digesting { input, copy, hasher: Sha256::new(), length: 0, most }
    }

    /// Reads what nobody has read: the digest and the length of all.
    pub(crate) fn finish(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        self.copy.flush()?;
        Ok((Digest(self.hasher.finalize().into()), self.length))
    }
}

impl<R: Read, W: Write> Read for Digesting<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        let bytes = buffer.get(..read).unwrap_or_default();
        self.hasher.update(bytes);
        self.copy.write_all(bytes)?;
        self.length += read as u64;
        if self.length > self.most {
            return Err(io::Error::other(format!("it is longer than the {} bytes it is said to have", self.most)));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_is_read_as_it_is_written_and_nothing_else_is_one() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(Digest::of(b"")));
        let upper = EMPTY.to_uppercase();
        for text in ["", "sha256:", "sha256:../../etc", &EMPTY[7..], &EMPTY[..70], &upper, "sha512:00"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        assert!(format!("sha256:{}é{}", "a".repeat(31), "a".repeat(31)).parse::<Digest>().is_err());
    }

    #[test]
    fn what_passes_is_copied_counted_and_bounded() {
        let mut copy = Vec::new();
        let mut passing = Digesting::new(&b"abc"[..], &mut copy, 3);
        let mut one = [0; 1];
        assert_eq!(passing.read(&mut one).unwrap(), 1);
        assert_eq!(passing.finish().unwrap(), (Digest::of(b"abc"), 3));
        assert_eq!(copy, b"abc");
        assert!(Digesting::new(&b"abc"[..], io::sink(), 2).finish().is_err());
    }
}
