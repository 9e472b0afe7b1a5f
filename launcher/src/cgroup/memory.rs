//! Memory and swap.

use std::str::FromStr;

use nix::sys::sysinfo::sysinfo;

use super::detect::{Controller, Version};
use super::directory::Directory;
use super::limits::Limits;
use super::setting::{Place, Setting};

/// Below this the union's daemon could not work.
const DAEMON_LEAST: u64 = 64 << 20;

/// The limit on memory and swap together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryAndSwap {
    /// None.
    Unlimited,
    /// In bytes.
    Bytes(u64),
}

impl FromStr for MemoryAndSwap {
    type Err = String;

    fn from_str(text: &str) -> Result<MemoryAndSwap, String> {
        if text == "-1" { Ok(MemoryAndSwap::Unlimited) } else { parse_size(text).map(MemoryAndSwap::Bytes) }
    }
}

/// Parses a size: a number of bytes, or of a unit of 1024, 1024², … bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = lower.split_at(digits);
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err("it is not a size like 512m or 2g".to_owned()),
    };
    scale(number, shift).ok_or_else(|| "it is not a size like 512m or 2g".to_owned())
}

/// A decimal number times a power of two, rounded down.
fn scale(number: &str, shift: u32) -> Option<u64> {
    const MOST_DIGITS: usize = 12;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let part = part.get(..MOST_DIGITS).unwrap_or(part);
    let unit = 1_u128 << shift;
    let whole = u128::from(whole.parse::<u64>().ok()?).checked_mul(unit)?;
    let divisor = 10_u128.pow(u32::try_from(part.len()).ok()?);
    let part = u128::from(part.parse::<u64>().ok()?) * unit / divisor;
    // v1 keeps its limits as signed numbers.
    u64::try_from(whole + part).ok().filter(|size| *size <= i64::MAX.cast_unsigned())
}

/// A size as it is read best.
pub(crate) fn show_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fitting = units.iter().find(|(shift, _)| bytes >= 1 << shift && bytes.is_multiple_of(1 << shift));
    fitting.map_or_else(|| format!("{bytes} bytes"), |(shift, unit)| format!("{} {unit}", bytes >> shift))
}

pub(crate) fn settings(limits: &Limits, version: Version) -> Vec<Setting> {
    let Some(memory) = limits.memory else { return Vec::new() };
    let file = match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    };
    let setting =
        |option, place, file, value: String| Setting::new(option, Controller::Memory, place, vec![(file, value)]);
    let mut settings = vec![setting("--memory", Place::Container, file, memory.to_string())];
    let (swap_file, swap) = match version {
        Version::V1 => {
            ("memory.memsw.limit_in_bytes", total(memory, limits.swap).map_or(-1, u64::cast_signed).to_string())
        }
        Version::V2 => {
            let swap = total(memory, limits.swap).map(|total| total.saturating_sub(memory).to_string());
            ("memory.swap.max", swap.unwrap_or("max".to_owned()))
        }
    };
    let swap = setting("--memory-swap", Place::Container, swap_file, swap);
    settings.push(if limits.swap.is_some() { swap } else { swap.implied() });
    // What a container writes through its union lies in the daemon's page cache, and would not count otherwise.
    let bound = memory.max(DAEMON_LEAST).saturating_add(limits.kept_in_memory).min(i64::MAX.cast_unsigned());
    settings.push(setting("--memory", Place::Daemon, file, bound.to_string()));
    settings
}

/// The bytes of a size as tmpfs takes it, which may be a part of this machine's memory.
pub(crate) fn top_size(size: &str) -> u64 {
    let of_memory = |percent: u64| sysinfo().map_or(u64::MAX, |info| info.ram_total()) / 100 * percent.min(100);
    match size.strip_suffix('%') {
        Some(percent) => percent.parse().map_or(u64::MAX, of_memory),
        None => parse_size(size).unwrap_or(u64::MAX),
    }
}

/// Memory and swap together: twice the memory where nothing is said, as docker has it.
fn total(memory: u64, asked: Option<MemoryAndSwap>) -> Option<u64> {
    match asked {
        None => Some(memory.saturating_mul(2).min(i64::MAX.cast_unsigned())),
        Some(MemoryAndSwap::Bytes(bytes)) => Some(bytes),
        Some(MemoryAndSwap::Unlimited) => None,
    }
}

/// How many processes the kernel has killed in a cgroup because its memory was used up.
pub(crate) fn kills(directory: &Directory, version: Version) -> u64 {
    let file = match version {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    };
    directory.number_of(file, "oom_kill").unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("0", 0),
            ("4096", 4096),
            ("7b", 7),
            ("50m", 50 << 20),
            ("1G", 1 << 30),
            ("1.5g", 3 << 29),
            ("2KiB", 2048),
            ("1tb", 1 << 40),
            ("0.1k", 102),
            ("1.k", 0),
        ] {
            let parsed = parse_size(text);
            if text == "1.k" {
                assert!(parsed.is_err(), "{text}");
            } else {
                assert_eq!(parsed, Ok(expected), "{text}");
            }
        }
        for text in ["", "m", "-1", "+1", "1x", "1 m", "1.2.3m", ".", "9999999999t", "18446744073709551616", "0x10"] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
        assert_eq!("-1".parse(), Ok(MemoryAndSwap::Unlimited));
        assert_eq!("1k".parse(), Ok(MemoryAndSwap::Bytes(1024)));
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_fits() {
        for (bytes, expected) in
            [(50 << 20, "50 MiB"), (1 << 30, "1 GiB"), (1500, "1500 bytes"), (3 << 9, "1536 bytes")]
        {
            assert_eq!(show_size(bytes), expected);
        }
    }

    #[test]
    fn swap_is_a_sum_on_v1_and_a_number_of_its_own_on_v2() {
        const MEMORY: u64 = 100 << 20;
        for (swap, v1, v2) in [
            (None, 2 * MEMORY.cast_signed(), (MEMORY).to_string()),
            (Some(MemoryAndSwap::Bytes(MEMORY)), MEMORY.cast_signed(), "0".to_owned()),
            (Some(MemoryAndSwap::Bytes(3 * MEMORY)), 3 * MEMORY.cast_signed(), (2 * MEMORY).to_string()),
            (Some(MemoryAndSwap::Unlimited), -1, "max".to_owned()),
        ] {
            let limits = Limits { memory: Some(MEMORY), swap, ..Limits::default() };
            assert_eq!(settings(&limits, Version::V1)[1].files, [("memory.memsw.limit_in_bytes", v1.to_string())]);
            assert_eq!(settings(&limits, Version::V2)[1].files, [("memory.swap.max", v2)]);
            assert_eq!(settings(&limits, Version::V2)[1].is_implied, swap.is_none());
        }
    }

    #[test]
    fn the_daemon_has_a_bound_that_it_can_live_with() {
        for (memory, expected) in [(4 << 20, DAEMON_LEAST), (1 << 30, 1 << 30)] {
            let limits = Limits { memory: Some(memory), ..Limits::default() };
            let daemon = settings(&limits, Version::V2).into_iter().find(|s| s.place == Place::Daemon).unwrap();
            assert_eq!(daemon.files, [("memory.max", expected.to_string())]);
        }
        assert_eq!(settings(&Limits::default(), Version::V1), []);
    }

    #[test]
    fn what_is_kept_in_memory_comes_on_top() {
        const MIB: u64 = 1 << 20;
        let daemon = |size: &str| {
            let mut limits = Limits { memory: Some(100 * MIB), ..Limits::default() };
            let kept = limits.keep_in_memory(size.to_owned());
            let daemon = settings(&limits, Version::V2).into_iter().find(|s| s.place == Place::Daemon).unwrap();
            (kept, daemon.files[0].1.clone())
        };
        assert_eq!(daemon("1g"), ((1024 * MIB).to_string(), (1124 * MIB).to_string()));
        // A quarter of this machine's memory is more than that.
        assert_eq!(daemon("25%"), ((100 * MIB).to_string(), (200 * MIB).to_string()));
        assert_eq!(Limits::default().keep_in_memory("25%".to_owned()), "25%");
        assert!(top_size("50%") <= top_size("100%") && top_size("50%") > top_size("1%"));
    }

    #[test]
    fn kills_are_counted() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
            .unwrap();
        std::fs::write(place.path().join("memory.events"), "low 0\nmax 9\noom 2\noom_kill 1\n").unwrap();
        let directory = Directory::open(place.path()).unwrap();
        assert_eq!((kills(&directory, Version::V1), kills(&directory, Version::V2)), (3, 1));
    }
}
