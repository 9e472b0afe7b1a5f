//! Signals by their numbers: those that have names, and the real-time ones, which have none of their own.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use nix::sys::signal::Signal;

/// As programs mean them, docker among them: the C library keeps the first two of the kernel's for itself; see signal(7).
pub(crate) const REALTIME: RangeInclusive<i32> = 34..=64;

/// A signal that can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalNumber(i32);

impl SignalNumber {
    /// Reads one that was written down; nothing where it is none.
    pub(crate) fn known(number: i32) -> Option<SignalNumber> {
        let is_known = Signal::try_from(number).is_ok() || REALTIME.contains(&number);
        is_known.then_some(SignalNumber(number))
    }

    pub(crate) fn number(self) -> i32 {
        self.0
    }
}

impl From<Signal> for SignalNumber {
    fn from(signal: Signal) -> SignalNumber {
        SignalNumber(signal as i32)
    }
}

impl FromStr for SignalNumber {
    type Err = String;

    /// A name, with or without SIG, `RTMIN+3` and `RTMAX-1` among them, or a number.
    fn from_str(text: &str) -> Result<SignalNumber, String> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let named = || Signal::from_str(&format!("SIG{name}")).ok().map(SignalNumber::from);
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = || text.parse().ok().filter(|_| is_number).and_then(SignalNumber::known);
        named().or_else(|| realtime(name)).or_else(number).ok_or_else(|| format!("'{text}' is no signal"))
    }
}

fn realtime(name: &str) -> Option<SignalNumber> {
    let distance = |rest: &str, sign: char| match rest.strip_prefix(sign) {
        None => rest.is_empty().then_some(0),
        Some(digits) => digits.parse::<u8>().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit())),
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => REALTIME.start() + i32::from(distance(rest, '+')?),
        (None, Some(rest)) => REALTIME.end() - i32::from(distance(rest, '-')?),
        (None, None) => return None,
    };
    REALTIME.contains(&number).then_some(SignalNumber(number))
}

impl fmt::Display for SignalNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("term", 15),
            ("15", 15),
            ("34", 34),
            ("64", 64),
            ("SIGRTMIN", 34),
            ("RTMIN+3", 37),
            ("sigrtmin+30", 64),
            ("RTMAX", 64),
            ("SIGRTMAX-14", 50),
        ] {
            assert_eq!(text.parse(), Ok(SignalNumber(number)), "{text}");
        }
        for text in [
            "",
            "0",
            "-1",
            "999",
            "FOO",
            "32",
            "33",
            "65",
            "+9",
            "SIG9",
            "RTMIN-1",
            "RTMIN+31",
            "RTMIN++3",
            "RTMAX-31",
            "RTMIN+999",
        ] {
            assert!(text.parse::<SignalNumber>().is_err(), "{text}");
        }
    }
}
