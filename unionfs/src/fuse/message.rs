//! Taking requests apart.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::abi::InHeader;
use crate::fs::Caller;

/// What follows the header of a request, from front to back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arguments<'a>(&'a [u8]);

impl<'a> Arguments<'a> {
    /// The next message; nothing if the request is too short.
    pub(super) fn take<T: FromBytes + Immutable + KnownLayout>(&mut self) -> Option<T> {
        let (message, rest) = T::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(message)
    }

    /// The next message, which older kernels send without its end.
    pub(super) fn take_short<T: FromBytes + IntoBytes + Default>(self) -> T {
        let mut message = T::default();
        let length = self.0.len().min(size_of::<T>());
        message.as_mut_bytes()[..length].copy_from_slice(&self.0[..length]);
        message
    }

    /// The next name, which a zero byte ends.
    pub(super) fn name(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let name = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(name)
    }

    /// So many bytes.
    pub(super) fn bytes(&mut self, length: u32) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length as usize)?;
        self.0 = rest;
        Some(bytes)
    }
}

/// Takes the header off a request; nothing if it is none.
pub(super) fn split(request: &[u8]) -> Option<(InHeader, Arguments<'_>)> {
    let (header, _) = InHeader::read_from_prefix(request).ok()?;
    let end = (header.len as usize).checked_sub(8 * usize::from(header.extensions))?;
    Some((header, Arguments(request.get(size_of::<InHeader>()..end)?)))
}

impl InHeader {
    /// Who asks.
    pub(super) fn caller(&self) -> Caller {
        Caller { uid: self.uid, gid: self.gid, pid: self.pid }
    }
}

#[cfg(test)]
mod tests {
    use super::super::abi::RenameIn;
    use super::*;

    fn request(body: &[u8], length: usize) -> Vec<u8> {
        let header = InHeader { len: length as u32, unique: 7, ..InHeader::default() };
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn a_request_is_taken_apart_from_front_to_back() {
        let body = [RenameIn { newdir: 9 }.as_bytes(), b"old\0new\0"].concat();
        let request = request(&body, 40 + body.len());
        let (header, mut arguments) = split(&request).unwrap();
        assert_eq!(header.unique, 7);
        assert_eq!(arguments.take::<RenameIn>().unwrap().newdir, 9);
        assert_eq!(arguments.name(), Some(&b"old"[..]));
        assert_eq!(arguments.name(), Some(&b"new"[..]));
        assert_eq!(arguments.name(), None);
    }

    #[test]
    fn what_is_too_short_is_no_request() {
        assert!(split(&[0; 39]).is_none());
        assert!(split(&request(b"", 41)).is_none());
        assert!(split(&request(b"", 39)).is_none());
        let whole = request(b"abc", 43);
        let (_, mut arguments) = split(&whole).unwrap();
        assert!(arguments.take::<RenameIn>().is_none());
        assert_eq!(arguments.name(), None);
        assert_eq!(arguments.bytes(4), None);
        assert_eq!(arguments.bytes(3), Some(&b"abc"[..]));
        let (_, arguments) = split(&whole).unwrap();
        assert_eq!(arguments.take_short::<RenameIn>().newdir.to_ne_bytes(), *b"abc\0\0\0\0\0");
    }
}
