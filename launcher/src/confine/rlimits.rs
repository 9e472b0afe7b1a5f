//! Resource limits of the command, `--ulimit`; getrlimit(2).

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// docker's names.
const NAMES: [(&str, Resource); 15] = [
    ("core", Resource::RLIMIT_CORE),
    ("cpu", Resource::RLIMIT_CPU),
    ("data", Resource::RLIMIT_DATA),
    ("fsize", Resource::RLIMIT_FSIZE),
    ("locks", Resource::RLIMIT_LOCKS),
    ("memlock", Resource::RLIMIT_MEMLOCK),
    ("msgqueue", Resource::RLIMIT_MSGQUEUE),
    ("nice", Resource::RLIMIT_NICE),
    ("nofile", Resource::RLIMIT_NOFILE),
    ("nproc", Resource::RLIMIT_NPROC),
    ("rss", Resource::RLIMIT_RSS),
    ("rtprio", Resource::RLIMIT_RTPRIO),
    ("rttime", Resource::RLIMIT_RTTIME),
    ("sigpending", Resource::RLIMIT_SIGPENDING),
    ("stack", Resource::RLIMIT_STACK),
];

/// One limit, in the unit of its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Limit {
    resource: Resource,
    soft: u64,
    hard: u64,
}

/// Reads `NAME=SOFT[:HARD]`, where -1 and `unlimited` are none.
///
/// # Errors
/// Where it is not of this form.
pub(super) fn parse(text: &str) -> Result<Limit, String> {
    let (name, values) = text.split_once('=').ok_or("it must be NAME=SOFT[:HARD]")?;
    let known = NAMES.iter().find(|(known, _)| *known == name);
    let (_, resource) = known.ok_or_else(|| format!("there is no limit '{name}'; see getrlimit(2)"))?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let limit = Limit { resource: *resource, soft: value(soft)?, hard: value(hard)? };
    if limit.soft > limit.hard {
        return Err("the soft limit is above the hard one".into());
    }
    Ok(limit)
}

impl TryFrom<String> for Limit {
    type Error = String;

    fn try_from(text: String) -> Result<Limit, String> {
        parse(&text)
    }
}

impl From<Limit> for String {
    fn from(limit: Limit) -> String {
        let word = |value: u64| if value == RLIM_INFINITY { "unlimited".to_owned() } else { value.to_string() };
        format!("{}={}:{}", limit.name(), word(limit.soft), word(limit.hard))
    }
}

/// What `/proc/PID/limits` says; proc_pid_limits(5).
pub(super) fn of_process(text: &str) -> Vec<Limit> {
    const TITLES: [(&str, Resource); 16] = [
        ("Max address space", Resource::RLIMIT_AS),
        ("Max core file size", Resource::RLIMIT_CORE),
        ("Max cpu time", Resource::RLIMIT_CPU),
        ("Max data size", Resource::RLIMIT_DATA),
        ("Max file size", Resource::RLIMIT_FSIZE),
        ("Max file locks", Resource::RLIMIT_LOCKS),
        ("Max locked memory", Resource::RLIMIT_MEMLOCK),
        ("Max msgqueue size", Resource::RLIMIT_MSGQUEUE),
        ("Max nice priority", Resource::RLIMIT_NICE),
        ("Max open files", Resource::RLIMIT_NOFILE),
        ("Max processes", Resource::RLIMIT_NPROC),
        ("Max resident set", Resource::RLIMIT_RSS),
        ("Max realtime priority", Resource::RLIMIT_RTPRIO),
        ("Max realtime timeout", Resource::RLIMIT_RTTIME),
        ("Max pending signals", Resource::RLIMIT_SIGPENDING),
        ("Max stack size", Resource::RLIMIT_STACK),
    ];
    let limit = |line: &str| {
        let (rest, resource) =
            TITLES.iter().find_map(|(title, resource)| Some((line.strip_prefix(title)?, *resource)))?;
        let mut values = rest.split_whitespace().map(value);
        Some(Limit { resource, soft: values.next()?.ok()?, hard: values.next()?.ok()? })
    };
    text.lines().filter_map(limit).collect()
}

/// As much of them as this process may set.
pub(super) fn clamped(limits: &[Limit]) -> Result<Vec<Limit>, Errno> {
    limits.iter().map(|limit| limit.clamped().map(|(limit, _)| limit)).collect()
}

fn value(text: &str) -> Result<u64, String> {
    match text {
        "-1" | "unlimited" => Ok(RLIM_INFINITY),
        _ if text.starts_with('+') => Err(format!("'{text}' is no number")),
        _ => text.parse().map_err(|_| format!("'{text}' is no number")),
    }
}

impl Limit {
    /// The limit as far as this process may set it, and whether that is less than what was asked for.
    pub(crate) fn clamped(self) -> Result<(Limit, bool), Errno> {
        let (_, hard) = getrlimit(self.resource)?;
        let clamped = Limit { soft: self.soft.min(hard), hard: self.hard.min(hard), ..self };
        Ok((clamped, clamped != self))
    }

    pub(crate) fn set(self) -> Result<(), Errno> {
        setrlimit(self.resource, self.soft, self.hard)
    }

    pub(crate) fn name(self) -> &'static str {
        NAMES.iter().find(|(_, resource)| *resource == self.resource).map_or("limit", |(name, _)| name)
    }

    pub(crate) fn hard(self) -> u64 {
        self.hard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_is_both_limits() {
        let limit = |resource, soft, hard| Ok(Limit { resource, soft, hard });
        assert_eq!(parse("nofile=1024:2048"), limit(Resource::RLIMIT_NOFILE, 1024, 2048));
        assert_eq!(parse("core=0"), limit(Resource::RLIMIT_CORE, 0, 0));
        assert_eq!(parse("stack=5:-1"), limit(Resource::RLIMIT_STACK, 5, RLIM_INFINITY));
        assert_eq!(parse("memlock=unlimited"), limit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY));
    }

    #[test]
    fn a_record_keeps_what_was_said() {
        for text in ["nofile=1024:2048", "core=0:0", "stack=5:unlimited"] {
            assert_eq!(String::from(parse(text).unwrap()), text);
        }
    }

    #[test]
    fn limits_of_a_process_are_those_that_the_kernel_lists() {
        let text = std::fs::read_to_string("/proc/self/limits").unwrap();
        let limits = of_process(&text);
        assert_eq!(limits.len(), 16, "{text}");
        for limit in limits {
            assert_eq!(getrlimit(limit.resource).unwrap(), (limit.soft, limit.hard), "{limit:?}");
        }
    }

    #[test]
    fn what_is_not_a_limit_is_refused() {
        for text in
            ["", "nofile", "nofile=", "files=1", "nofile=1:", "nofile=2:1", "nofile=+1", "nofile=-2", "nofile=1x"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
