//! The reply to READDIR and READDIRPLUS, written entry by entry into one buffer.

use zerocopy::IntoBytes;

use super::abi::{Dirent, EntryOut};

/// Entries, up to the size that the kernel has room for.
#[derive(Debug)]
pub(super) struct Listing<'a> {
    buffer: &'a mut Vec<u8>,
    room: usize,
}

impl<'a> Listing<'a> {
    /// An empty one, in a buffer that is used again and again.
    pub(super) fn new(buffer: &'a mut Vec<u8>, room: u32) -> Listing<'a> {
        buffer.clear();
        Listing { buffer, room: room as usize }
    }

    /// Adds an entry; true if there is no room for it any more.
    pub(super) fn add(&mut self, entry: Option<&EntryOut>, mut head: Dirent, name: &[u8]) -> bool {
        const ALIGN: usize = size_of::<u64>();
        let before = if entry.is_some() { size_of::<EntryOut>() } else { 0 };
        let length = (before + size_of::<Dirent>() + name.len()).next_multiple_of(ALIGN);
        if self.buffer.len() + length > self.room {
            return true;
        }
        head.namelen = name.len() as u32;
        let end = self.buffer.len() + length;
        if let Some(entry) = entry {
            self.buffer.extend_from_slice(entry.as_bytes());
        }
        self.buffer.extend_from_slice(head.as_bytes());
        self.buffer.extend_from_slice(name);
        self.buffer.resize(end, 0);
        false
    }

    /// The entries.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_end_where_the_room_does() {
        let mut buffer = vec![1; 5];
        let mut listing = Listing::new(&mut buffer, 72);
        let head = |ino| Dirent { ino, off: ino, kind: 8, namelen: 0 };
        assert!(!listing.add(None, head(1), b"a"));
        assert_eq!(listing.bytes().len(), 32);
        assert!(!listing.add(None, head(2), b"12345678"));
        assert_eq!(listing.bytes().len(), 64);
        assert!(listing.add(None, head(3), b"x"));
        assert_eq!(listing.bytes().len(), 64);
        assert_eq!(&listing.bytes()[16..25], b"\x01\0\0\0\x08\0\0\0a");
    }
}
