//! Which permissions the files of a command do not get.

use std::fmt;
use std::str::FromStr;

use nix::sys::stat::{Mode, umask};
use serde::{Deserialize, Serialize};

/// A mask of permissions, written as four octal digits; see umask(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Umask(Mode);

impl Default for Umask {
    /// That of containers everywhere: the group and others cannot write.
    fn default() -> Umask {
        Umask(Mode::S_IWGRP | Mode::S_IWOTH)
    }
}

impl Umask {
    /// That of this process, which has one thread only: it can be read only by changing it.
    pub(crate) fn of_this_process() -> Umask {
        let mask = umask(Mode::empty());
        umask(mask);
        Umask(mask)
    }

    /// Gives it to this process.
    pub(crate) fn set(self) {
        umask(self.0);
    }
}

impl FromStr for Umask {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Umask, &'static str> {
        let is_mask = matches!(text.len(), 1..=4) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        let bits = u32::from_str_radix(text, 8).ok().filter(|bits| is_mask && *bits <= 0o777);
        bits.and_then(Mode::from_bits).map(Umask).ok_or("up to four octal digits are expected, 0777 at most")
    }
}

impl TryFrom<String> for Umask {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Umask, &'static str> {
        text.parse()
    }
}

impl From<Umask> for String {
    fn from(mask: Umask) -> String {
        mask.to_string()
    }
}

impl fmt::Display for Umask {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:04o}", self.0.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_read_as_it_is_written_and_nothing_else_is_one() {
        assert_eq!(Umask::default().to_string(), "0022");
        for (text, same) in [("0022", "0022"), ("22", "0022"), ("0", "0000"), ("777", "0777"), ("027", "0027")] {
            assert_eq!(text.parse::<Umask>().map(|mask| mask.to_string()), Ok(same.to_owned()), "{text}");
        }
        for text in ["", "8", "1000", "00022", "+22", "-1", "0o22", "u=rwx", " 22", "0x2"] {
            assert!(text.parse::<Umask>().is_err(), "{text}");
        }
    }
}
