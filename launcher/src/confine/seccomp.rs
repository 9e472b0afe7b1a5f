//! Filters for system calls: what a call meets, and its translation into the program that the kernel runs; seccomp(2).
//!
//! We translate ourselves, because one filter has to give several answers (EPERM to what is refused, ENOSYS to what is
//! newer than the list, and whatever a profile of the user's names), and because the kernel runs a new filter once for
//! every call it knows: the search by halves makes that, and so each start, a hundred times shorter than a list would.

mod bpf;
mod default;
mod oci;
mod table;

use std::borrow::Cow;
use std::path::Path;

pub(crate) use bpf::Instruction;
use serde::{Deserialize, Serialize};

use super::capabilities::Capabilities;
use crate::failure::Failure;

/// The answer to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Allow,
    Log,
    /// The call fails with this number.
    Errno(u16),
    Trace(u16),
    Trap(u16),
    KillThread,
    KillProcess,
}

/// The call is not made, and its caller sees it succeed.
const DONE: Answer = Answer::Errno(0);
const EPERM: Answer = Answer::Errno(nix::libc::EPERM as u16);
const ENOSYS: Answer = Answer::Errno(nix::libc::ENOSYS as u16);

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// One question about one argument, of which only the bits of the mask count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condition {
    /// 0 to 5.
    argument: u8,
    mask: u64,
    comparison: Comparison,
    value: u64,
}

/// What calls of these names meet if all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    names: Vec<Cow<'static, str>>,
    conditions: Vec<Condition>,
    answer: Answer,
}

/// A whole filter, still with names. The first rule that fits decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile {
    rules: Vec<Rule>,
    /// For calls that no rule names, or whose conditions do not hold.
    otherwise: Answer,
    /// For calls that were not known when this program was written, so that programs fall back on older ones.
    newer: Answer,
}

/// Whose numbers are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "it is the other machine"))]
    X86_64,
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "it is the other machine"))]
    Aarch64,
    /// 32-bit programs on x86_64.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "it is the other machine"))]
    I386,
}

impl Architecture {
    #[cfg(target_arch = "x86_64")]
    pub(crate) const NATIVE: Architecture = Architecture::X86_64;
    #[cfg(target_arch = "aarch64")]
    pub(crate) const NATIVE: Architecture = Architecture::Aarch64;

    /// What the kernel calls it; linux/audit.h.
    fn mark(self) -> u32 {
        match self {
            Architecture::X86_64 => 0xc000_003e,
            Architecture::Aarch64 => 0xc000_00b7,
            Architecture::I386 => 0x4000_0003,
        }
    }

    /// All whose programs this machine may run. 32-bit ARM is not among them: its programs are refused.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const FAMILY: &'static [Architecture] = &[Architecture::X86_64, Architecture::I386];
    #[cfg(target_arch = "aarch64")]
    pub(crate) const FAMILY: &'static [Architecture] = &[Architecture::Aarch64];
}

/// What is different from docker's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exception {
    /// The command has the caller's terminal, and may not type into it.
    Terminal,
    /// There is nobody but root. Files that are given to others stay root's, and whoever gives them is told that it is done:
    /// the kernel itself would refuse it, and with it most packages.
    Owners,
}

impl Exception {
    /// Those that hold.
    pub(crate) fn all(shares_terminal: bool, is_alone: bool) -> Vec<Exception> {
        let all = [(shares_terminal, Exception::Terminal), (is_alone, Exception::Owners)];
        all.into_iter().filter(|(holds, _)| *holds).map(|(_, exception)| exception).collect()
    }
}

/// A filter as the kernel takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    program: Vec<Instruction>,
}

impl Filter {
    /// docker's list, for a process that has these capabilities.
    pub(crate) fn docker(capabilities: Capabilities, exceptions: impl IntoIterator<Item = Exception>) -> Filter {
        let mut profile = default::profile(capabilities);
        let rules = exceptions.into_iter().flat_map(|exception| match exception {
            Exception::Terminal => default::keep_out_of_the_terminal(),
            Exception::Owners => default::keep_owners(),
        });
        profile.rules.splice(0..0, rules);
        Filter::of(&profile)
    }

    /// A profile in the OCI form; the path is for messages.
    ///
    /// # Errors
    /// Where it asks for what is not there.
    pub(crate) fn from_text(path: &Path, text: &[u8], capabilities: Capabilities) -> Result<Filter, Failure> {
        let doing = format!("use the seccomp profile {}", path.display());
        let profile = oci::parse(text, capabilities).map_err(|reason| Failure::because(&doing, reason))?;
        let filter = Filter::of(&profile);
        if filter.program.len() > bpf::LONGEST {
            return Err(Failure::because(&doing, "it is longer than what the kernel takes"));
        }
        Ok(filter)
    }

    /// For a process that reads files, answers on what it has open, and does nothing else.
    pub(crate) fn reading() -> Filter {
        const CALLS: [&str; 31] = [
            "brk",
            "clock_gettime",
            "close",
            "exit",
            "exit_group",
            "fcntl",
            "fstat",
            "futex",
            "getpid",
            "getrandom",
            "gettid",
            "lseek",
            "madvise",
            "mmap",
            "mprotect",
            "mremap",
            "munmap",
            "newfstatat",
            "poll",
            "ppoll",
            "pread64",
            "read",
            "readv",
            "restart_syscall",
            "rt_sigaction",
            "rt_sigprocmask",
            "rt_sigreturn",
            "sigaltstack",
            "statx",
            "write",
            "writev",
        ];
        let allow = |names: &[&'static str], conditions| {
            let names = names.iter().map(|name| Cow::Borrowed(*name)).collect();
            Rule { names, conditions, answer: Answer::Allow }
        };
        let mask = (nix::libc::O_ACCMODE | nix::libc::O_CREAT | nix::libc::O_TRUNC).cast_unsigned().into();
        let only_to_read = |argument| vec![Condition { argument, mask, comparison: Comparison::Equal, value: 0 }];
        let rules =
            vec![allow(&CALLS, Vec::new()), allow(&["open"], only_to_read(1)), allow(&["openat"], only_to_read(2))];
        Filter::of(&Profile { rules, otherwise: EPERM, newer: ENOSYS })
    }

    fn of(profile: &Profile) -> Filter {
        let decisions = |architecture: &Architecture| (architecture.mark(), decisions(profile, *architecture));
        let family: Vec<_> = Architecture::FAMILY.iter().map(decisions).collect();
        Filter { program: bpf::program(&family, ENOSYS) }
    }

    pub(crate) fn program(&self) -> &[Instruction] {
        &self.program
    }
}

/// What a call of one number meets.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decision<'a> {
    /// Those before the first that has no conditions.
    exceptions: Vec<(&'a [Condition], Answer)>,
    otherwise: Answer,
}

/// From each of these numbers on, up to the next, the decision holds. The first number is 0.
type Decisions<'a> = Vec<(u32, Decision<'a>)>;

fn decisions(profile: &Profile, architecture: Architecture) -> Decisions<'_> {
    let numbers = |rule: &Rule| {
        // A call that the architecture lacks needs no rule: it has no number that anybody could use.
        let numbers = rule.names.iter().filter_map(|name| table::number(name, architecture));
        numbers.collect::<Vec<_>>()
    };
    let numbered = profile.rules.iter().flat_map(|rule| numbers(rule).into_iter().map(move |number| (number, rule)));
    let mut by_number: Vec<(u32, &Rule)> = numbered.collect();
    // Rules for the same call stay in their order.
    by_number.sort_by_key(|(number, _)| *number);
    let mut rest = by_number.as_slice();
    let plain = |otherwise| Decision { exceptions: Vec::new(), otherwise };
    let all = (0..=table::NEWEST).map(|number| {
        let (rules, later) = rest.split_at(rest.partition_point(|(other, _)| *other == number));
        rest = later;
        (number, if rules.is_empty() { plain(profile.otherwise) } else { decide(rules, profile.otherwise) })
    });
    let mut decisions: Decisions<'_> = all.chain([(table::NEWEST + 1, plain(profile.newer))]).collect();
    decisions.dedup_by(|next, before| next.1 == before.1);
    decisions
}

fn decide<'a>(rules: &[(u32, &'a Rule)], otherwise: Answer) -> Decision<'a> {
    let last = rules.iter().position(|(_, rule)| rule.conditions.is_empty());
    let exceptions = rules.iter().take(last.unwrap_or(rules.len()));
    Decision {
        exceptions: exceptions.map(|(_, rule)| (rule.conditions.as_slice(), rule.answer)).collect(),
        otherwise: last.and_then(|index| rules.get(index)).map_or(otherwise, |(_, rule)| rule.answer),
    }
}

#[cfg(test)]
mod tests;
