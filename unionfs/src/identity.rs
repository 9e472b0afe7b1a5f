//! Inode numbers (rule 33): one for each object, the same for all its names, kept over copy-up,
//! rename and remount.
//!
//! An object that only one branch holds has a number computed from its real identity. One that
//! was copied up keeps the number it had; the work area's table says so. The number is the FUSE
//! node id, too, so two objects that the kernel knows at one time must never share it.

use parking_lot::RwLock;

use crate::branch::stat::RealId;

/// Numbers below this are inode numbers of the first device as they are.
const PLAIN: u64 = 1 << 56;
/// More devices than this share one space of hashed numbers.
const DEVICES: u64 = 0xF0;

/// Computes natural numbers.
#[derive(Debug, Default)]
pub struct Numbers {
    /// The devices, in the order in which they were met; the branches' own come first.
    devices: RwLock<Vec<u64>>,
}

impl Numbers {
    /// The number of an object that has no other: injective but for inode numbers of more than
    /// 56 bits, which are hashed.
    pub fn natural(&self, id: RealId) -> u64 {
        let device = self.device(id.dev);
        if (2..PLAIN).contains(&id.ino) && device < DEVICES {
            return device << 56 | id.ino;
        }
        0xFF << 56 | (mix(id.ino ^ mix(device)) & (PLAIN - 1))
    }

    /// The place of a device among all; who comes first has the first.
    pub fn device(&self, dev: u64) -> u64 {
        if let Some(known) = self.devices.read().iter().position(|d| *d == dev) {
            return known as u64;
        }
        let mut devices = self.devices.write();
        let at = devices.iter().position(|d| *d == dev).unwrap_or_else(|| {
            devices.push(dev);
            devices.len() - 1
        });
        at as u64
    }
}

/// The finalizer of SplitMix64: spreads every bit of the input over the output.
fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_different_objects_differ() {
        let numbers = Numbers::default();
        let id = |dev, ino| RealId { dev, ino, birth: 0 };
        assert_eq!(numbers.natural(id(7, 12)), 12);
        let mut seen = std::collections::HashSet::new();
        for dev in [7, 8, 9] {
            for ino in [1, 2, 12, 1 << 40, (1 << 56) + 5, u64::MAX] {
                let number = numbers.natural(id(dev, ino));
                assert!(number > 1);
                assert!(seen.insert(number), "{dev} {ino}");
            }
        }
    }
}
