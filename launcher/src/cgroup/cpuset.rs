//! Which CPUs and memory nodes.

use std::fmt;
use std::str::FromStr;

use super::detect::{Controller, Version};
use super::limits::Limits;
use super::setting::{Place, Setting};

/// More CPUs than any kernel is built for; bounds what a list may make us keep.
const MOST: usize = 65_536;

/// A list of numbers as the kernel writes it: `0-2,4`. Sorted, and not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(Vec<usize>);

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<CpuList, String> {
        let mut numbers = Vec::new();
        for part in text.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = number(first).zip(number(last)).filter(|(first, last)| first <= last);
            let (first, last) = range.ok_or_else(|| format!("'{part}' is neither a number nor a range like 0-3"))?;
            numbers.extend(first..=last);
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(CpuList(numbers))
    }
}

fn number(text: &str) -> Option<usize> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| is_number && *number < MOST)
}

impl fmt::Display for CpuList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for run in self.0.chunk_by(|one, next| one + 1 == *next) {
            match run {
                [first, .., last] => write!(formatter, "{separator}{first}-{last}")?,
                [only] => write!(formatter, "{separator}{only}")?,
                [] => {}
            }
            separator = ",";
        }
        Ok(())
    }
}

impl CpuList {
    /// So many of them, beginning with one that depends on `seed`: many small containers must not share one CPU.
    ///
    /// None where there are no more than that.
    pub(crate) fn choose(&self, count: usize, seed: usize) -> Option<CpuList> {
        if count == 0 || count >= self.0.len() {
            return None;
        }
        let chosen = self.0.iter().cycle().skip(seed % self.0.len()).take(count);
        let mut chosen: Vec<usize> = chosen.copied().collect();
        chosen.sort_unstable();
        Some(CpuList(chosen))
    }
}

impl CpuList {
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn contains(&self, number: usize) -> bool {
        self.0.binary_search(&number).is_ok()
    }

    /// Those that both have; none where there are none.
    pub(crate) fn and(&self, other: &CpuList) -> Option<CpuList> {
        let both: Vec<usize> = self.0.iter().copied().filter(|number| other.contains(*number)).collect();
        (!both.is_empty()).then_some(CpuList(both))
    }

    /// The first ones, at least one.
    pub(crate) fn first(&self, count: usize) -> CpuList {
        CpuList(self.0.iter().copied().take(count.max(1)).collect())
    }
}

pub(crate) fn settings(limits: &Limits, version: Version) -> Vec<Setting> {
    // On v1 every cgroup has a set of its own, and none may exceed that of the one around it.
    let places: &[Place] = match version {
        Version::V1 => &[Place::Container, Place::Daemon],
        Version::V2 => &[Place::Common],
    };
    let setting = |option, file, list: &CpuList| {
        let setting =
            move |place: &Place| Setting::new(option, Controller::Cpuset, *place, vec![(file, list.to_string())]);
        places.iter().map(setting).collect::<Vec<_>>()
    };
    let mut settings = Vec::new();
    match (&limits.cpuset_cpus, &limits.pinned) {
        (Some(cpus), _) => settings.extend(setting("--cpuset-cpus", "cpuset.cpus", cpus)),
        (None, Some(cpus)) => {
            settings.extend(setting("--cpus", "cpuset.cpus", cpus).into_iter().map(Setting::implied));
        }
        (None, None) => {}
    }
    if let Some(mems) = &limits.cpuset_mems {
        settings.extend(setting("--cpuset-mems", "cpuset.mems", mems));
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        for (text, expected) in [("0", "0"), ("0-2,4", "0-2,4"), ("4,1,0,1", "0-1,4"), ("3-3", "3"), ("0-1\n", "0-1")] {
            assert_eq!(text.parse::<CpuList>().map(|list| list.to_string()), Ok(expected.to_owned()), "{text:?}");
        }
        for text in ["", ",", "1,", "a", "-1", "1-", "2-1", "1-2-3", "+1", "70000", "0-99999999999", "0 1"] {
            assert!(text.parse::<CpuList>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_choice_is_spread() {
        let list: CpuList = "0-2,8".parse().unwrap();
        for (count, seed, expected) in [
            (1, 0, Some("0")),
            (1, 3, Some("8")),
            (1, 4, Some("0")),
            (2, 3, Some("0,8")),
            (3, 1, Some("1-2,8")),
            (4, 0, None),
            (9, 0, None),
            (0, 0, None),
        ] {
            assert_eq!(list.choose(count, seed).map(|list| list.to_string()).as_deref(), expected, "{count} {seed}");
        }
    }

    #[test]
    fn a_list_of_the_callers_replaces_ours() {
        let pinned = Limits { pinned: Some("1".parse().unwrap()), ..Limits::default() };
        let both = Limits { cpuset_cpus: Some("0".parse().unwrap()), ..pinned.clone() };
        let values = |limits, version| {
            let settings = settings(limits, version).into_iter();
            settings.map(|s| (s.place, s.files[0].1.clone(), s.is_implied)).collect::<Vec<_>>()
        };
        assert_eq!(values(&pinned, Version::V2), [(Place::Common, "1".to_owned(), true)]);
        assert_eq!(
            values(&both, Version::V1),
            [(Place::Container, "0".to_owned(), false), (Place::Daemon, "0".to_owned(), false)]
        );
    }
}
