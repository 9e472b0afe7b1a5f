//! What the kernel offers, for those who only want to know.

use std::io;
use std::os::fd::OwnedFd;

use super::abi::{OLDEST_MINOR, init};
use super::device::Device;
use super::handshake::first_request;
use super::version::Cap;

/// The version of the kernel's side, and what it can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The minor version; the major one is 7.
    pub minor: u32,
    /// The flags of INIT.
    flags: u64,
}

impl Offer {
    /// Reads the first request of a device that is mounted. It is not answered: the mount serves nobody, and ends with the
    /// device.
    ///
    /// # Errors
    /// What reading the device answers.
    pub fn of(device: OwnedFd) -> io::Result<Offer> {
        let (_, asked) = first_request(&Device::new(device)?)?;
        let asked = Cap::from_environment()?.lowered(&asked);
        Ok(Offer { minor: asked.minor, flags: u64::from(asked.flags) | u64::from(asked.flags2) << 32 })
    }

    /// Whether this version is served.
    pub fn is_served(&self) -> bool {
        self.minor >= OLDEST_MINOR
    }

    /// Whether there is a feature, by its name in `runionfs show`.
    pub fn has(&self, feature: &str) -> bool {
        let flag = match feature {
            "readdirplus" => init::DO_READDIRPLUS,
            "writeback_cache" => init::WRITEBACK_CACHE,
            "no_open" => init::NO_OPEN_SUPPORT,
            "parallel_dirops" => init::PARALLEL_DIROPS,
            "posix_acl" => init::POSIX_ACL,
            "max_pages" => init::MAX_PAGES,
            "cache_symlinks" => init::CACHE_SYMLINKS,
            "no_opendir" => init::NO_OPENDIR_SUPPORT,
            "handle_killpriv_v2" => init::HANDLE_KILLPRIV_V2,
            "passthrough" => init::PASSTHROUGH,
            "idmapped" => init::ALLOW_IDMAP,
            "io_uring" => init::OVER_IO_URING,
            _ => 0,
        };
        self.flags & flag != 0
    }

    /// As bytes, for another process of this program.
    pub fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.minor.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.flags.to_ne_bytes());
        bytes
    }

    /// What [`Offer::to_bytes`] made.
    pub fn from_bytes(bytes: &[u8; 12]) -> Offer {
        let [a, b, c, d, flags @ ..] = *bytes;
        Offer { minor: u32::from_ne_bytes([a, b, c, d]), flags: u64::from_ne_bytes(flags) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_survives_its_way() {
        let offer = Offer { minor: 41, flags: init::PASSTHROUGH | init::POSIX_ACL };
        assert_eq!(Offer::from_bytes(&offer.to_bytes()), offer);
        assert!(offer.has("passthrough") && offer.has("posix_acl") && !offer.has("max_pages") && offer.is_served());
    }
}
