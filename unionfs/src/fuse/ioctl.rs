//! The ioctl requests that are answered: file flags and versions. The kernel takes all others for
//! requests that a file system does not have (ENOTTY).

use rustix::io::Errno;

use crate::fs::Union;
use crate::sys::{ExtendedFlags, GET_EXTENDED_FLAGS, GET_VERSION, SET_EXTENDED_FLAGS};

const GET_FLAGS: u32 = libc::FS_IOC_GETFLAGS as u32;
const SET_FLAGS: u32 = libc::FS_IOC_SETFLAGS as u32;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ioctl {
    GetFlags,
    SetFlags(u32),
    GetExtended,
    SetExtended(ExtendedFlags),
    GetVersion,
}

impl Ioctl {
    /// Reads a request. Nothing if it is none that is known, or too short.
    pub(super) fn read(command: u32, data: &[u8]) -> Option<Ioctl> {
        Some(match command {
            GET_FLAGS => Ioctl::GetFlags,
            // it says that it writes a long, and writes an int
            SET_FLAGS => Ioctl::SetFlags(u32::from_ne_bytes(*data.first_chunk()?)),
            GET_EXTENDED_FLAGS => Ioctl::GetExtended,
            SET_EXTENDED_FLAGS => Ioctl::SetExtended(ExtendedFlags::from_bytes(data.first_chunk()?)),
            GET_VERSION => Ioctl::GetVersion,
            _ => return None,
        })
    }

    /// Whether something may be copied up for it.
    pub(super) fn changes(self) -> bool {
        matches!(self, Ioctl::SetFlags(_) | Ioctl::SetExtended(_))
    }

    /// Does it, and returns what is passed back.
    pub(super) fn run(self, union: &Union, ino: u64) -> Result<Vec<u8>, Errno> {
        let int = |value: u32| value.to_ne_bytes().to_vec();
        match self {
            Ioctl::GetFlags => union.flags(ino).map(int),
            Ioctl::SetFlags(flags) => union.set_flags(ino, flags).map(|()| Vec::new()),
            Ioctl::GetExtended => union.extended_flags(ino).map(ExtendedFlags::to_bytes),
            Ioctl::SetExtended(flags) => union.set_extended_flags(ino, flags).map(|()| Vec::new()),
            Ioctl::GetVersion => union.version(ino).map(int),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_the_kernel_writes_them() {
        let bytes: Vec<u8> = (0..28).collect();
        let extended = ExtendedFlags::from_bytes(bytes.first_chunk().unwrap());
        assert_eq!(extended.to_bytes(), bytes);
        assert_eq!(Ioctl::read(0x401c_5820, &bytes), Some(Ioctl::SetExtended(extended)));
        assert_eq!(Ioctl::read(0x801c_581f, &[]), Some(Ioctl::GetExtended));
        assert_eq!(Ioctl::read(SET_FLAGS, &16u32.to_ne_bytes()), Some(Ioctl::SetFlags(16)));
        for short in [(SET_FLAGS, 3), (0x401c_5820, 27)] {
            assert_eq!(Ioctl::read(short.0, &bytes[..short.1]), None);
        }
        assert_eq!(Ioctl::read(0x5401, &[]), None);
    }
}
