//! The reply to READDIR and READDIRPLUS, written entry by entry into one buffer.

use zerocopy::IntoBytes;

use super::abi::{Dirent, EntryOut};

/// Entries, up to the size that the kernel has room for.
#[derive(Debug)]
pub(super) struct Listing<'a> {
    room: &'a mut [u8],
    length: usize,
}

impl<'a> Listing<'a> {
    /// An empty one, which is written over what was there before.
    pub(super) fn new(room: &'a mut [u8]) -> Listing<'a> {
        Listing { room, length: 0 }
    }

    /// Adds an entry; true if there is no room for it any more.
    pub(super) fn add(&mut self, entry: Option<&EntryOut>, mut head: Dirent, name: &[u8]) -> bool {
        const ALIGN: usize = size_of::<u64>();
        let before = if entry.is_some() { size_of::<EntryOut>() } else { 0 };
        let length = (before + size_of::<Dirent>() + name.len()).next_multiple_of(ALIGN);
        let Some(mut room) = self.room.get_mut(self.length..self.length + length) else { return true };
        head.namelen = name.len() as u32;
        let entry = entry.map_or(&[][..], IntoBytes::as_bytes);
        for part in [entry, head.as_bytes(), name] {
            let (filled, rest) = room.split_at_mut(part.len());
            filled.copy_from_slice(part);
            room = rest;
        }
        room.fill(0);
        self.length += length;
        false
    }

    /// The entries.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.room[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_end_where_the_room_does() {
        let mut room = [1; 72];
        let mut listing = Listing::new(&mut room);
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
