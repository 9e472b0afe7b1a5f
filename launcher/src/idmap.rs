//! Which users and groups of the machine those of a container are; see user_namespaces(7).

use std::fmt;
use std::fs;
use std::str::FromStr;

use nix::errno::Errno;
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};

use crate::failure::{Doing as _, Failure};

/// What the kernel takes, since Linux 4.15.
const MOST_RANGES: usize = 340;
const FORM: &str = "CONTAINER:HOST:SIZE is expected";

/// Ids in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first of them in the container.
    inside: u32,
    /// The first of them on the machine.
    outside: u32,
    /// How many they are, at least one.
    count: u32,
}

impl FromStr for IdRange {
    type Err = String;

    fn from_str(text: &str) -> Result<IdRange, String> {
        let number = |word: &str| word.parse().ok().filter(|_| !word.starts_with('+'));
        let numbers: Option<Vec<u32>> = text.split(':').map(number).collect();
        let Some(&[inside, outside, count]) = numbers.as_deref() else { return Err(FORM.to_owned()) };
        // The last number of all stands for nobody: see chown(2).
        let fits = |first: u32| first.checked_add(count).is_some();
        if count == 0 || !fits(inside) || !fits(outside) {
            return Err(format!("there are no {count} ids from {} on; {FORM}", inside.max(outside)));
        }
        Ok(IdRange { inside, outside, count })
    }
}

/// As newuidmap(1) and the kernel take it.
impl fmt::Display for IdRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} {}", self.inside, self.outside, self.count)
    }
}

/// The users and groups of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    /// The users.
    pub(crate) users: Vec<IdRange>,
    /// The groups.
    pub(crate) groups: Vec<IdRange>,
}

impl IdMaps {
    /// What `--uidmap` and `--gidmap` say; where one is missing, both are the same. None where neither is given.
    ///
    /// # Errors
    /// Where ids would be mapped twice, or the container had no root.
    pub fn new(users: &[IdRange], groups: &[IdRange]) -> Result<Option<IdMaps>, Failure> {
        let (users, groups) = match (users, groups) {
            ([], []) => return Ok(None),
            (same, []) | ([], same) => (same, same),
            both => both,
        };
        for (option, ranges) in [("--uidmap", users), ("--gidmap", groups)] {
            check(ranges).map_err(|why| Failure::because(&format!("use {option}"), why))?;
        }
        Ok(Some(IdMaps { users: users.to_vec(), groups: groups.to_vec() }))
    }

    /// Whether the container's root is this user of the machine, with this group.
    pub(crate) fn root_is(&self, user: Uid, group: Gid) -> bool {
        outside(&self.users, 0) == Some(user.as_raw()) && outside(&self.groups, 0) == Some(group.as_raw())
    }

    /// Gives them to the user namespace in which a process of ours is.
    ///
    /// # Errors
    /// Where the kernel refuses, as it does to all but root.
    pub(crate) fn give_to(&self, process: Pid) -> Result<(), Failure> {
        for (file, ranges) in [("uid_map", &self.users), ("gid_map", &self.groups)] {
            let lines: String = ranges.iter().map(|range| format!("{range}\n")).collect();
            fs::write(format!("/proc/{process}/{file}"), lines).doing("map the ids of the container")?;
        }
        Ok(())
    }
}

/// Becomes root of the user namespace in which this process is already.
pub(crate) fn become_root() -> Result<(), Errno> {
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)
}

fn outside(ranges: &[IdRange], id: u32) -> Option<u32> {
    let range = ranges.iter().find(|range| id.checked_sub(range.inside).is_some_and(|offset| offset < range.count))?;
    range.outside.checked_add(id - range.inside)
}

fn check(ranges: &[IdRange]) -> Result<(), String> {
    if ranges.len() > MOST_RANGES {
        return Err(format!("the kernel takes {MOST_RANGES} ranges at most"));
    }
    for (number, one) in ranges.iter().enumerate() {
        for other in ranges.iter().skip(number + 1) {
            let meet = |a: u32, b: u32| a < b.saturating_add(other.count) && b < a.saturating_add(one.count);
            if meet(one.inside, other.inside) || meet(one.outside, other.outside) {
                return Err(format!("{one} and {other} have ids in common"));
            }
        }
    }
    outside(ranges, 0).map(drop).ok_or_else(|| "the container needs a root: map its id 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(texts: &[&str]) -> Vec<IdRange> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_are_three_numbers() {
        assert_eq!("0:100000:65536".parse(), Ok(IdRange { inside: 0, outside: 100_000, count: 65_536 }));
        assert_eq!("0:0:4294967295".parse(), Ok(IdRange { inside: 0, outside: 0, count: u32::MAX }));
        for text in ["", "0:1", "0:1:0", "0:1:2:3", "0:-1:1", "0:+1:1", "a:0:1", "1:0:4294967295", "0:4294967295:1"] {
            assert!(text.parse::<IdRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn one_map_serves_for_both() {
        let users = ranges(&["0:1000:1", "1:200000:10"]);
        let maps = IdMaps::new(&users, &[]).unwrap().unwrap();
        assert_eq!((&maps.users, &maps.groups), (&users, &users));
        assert_eq!(IdMaps::new(&[], &users).unwrap().unwrap(), maps);
        assert_eq!(IdMaps::new(&[], &[]), Ok(None));
        assert!(maps.root_is(Uid::from_raw(1000), Gid::from_raw(1000)));
        assert!(!maps.root_is(Uid::from_raw(1000), Gid::from_raw(1001)));
    }

    #[test]
    fn every_id_is_one_and_there_is_a_root() {
        for (texts, word) in [
            (&["0:1000:2", "1:2000:1"][..], "in common"),
            (&["0:1000:1", "1:1000:1"], "in common"),
            (&["0:1000:10", "10:1005:10"], "in common"),
            (&["1:1000:1"], "needs a root"),
        ] {
            let text = IdMaps::new(&ranges(texts), &[]).unwrap_err().to_string();
            assert!(text.starts_with("cannot use --uidmap: ") && text.contains(word), "{text}");
        }
        assert!(IdMaps::new(&ranges(&["0:1000:10", "10:1010:10"]), &[]).is_ok());
    }
}
