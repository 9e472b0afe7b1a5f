//! Profiles of the user's, in the OCI form and in docker's, which adds conditions on capabilities, architecture and kernel.
//!
//! <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp>

use std::borrow::Cow;

use serde::Deserialize;

use super::{Answer, Architecture, Comparison, Condition, ENOSYS, Profile, Rule};
use crate::confine::capabilities::Capabilities;

/// A filter has this many arguments to look at; libseccomp takes one condition for each.
const ARGUMENTS: usize = 6;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Form {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Option<Vec<Syscall>>,
    listener_path: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscall {
    #[serde(default)]
    names: Vec<String>,
    /// The form that docker had before 1.12.
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<Circumstances>,
    #[serde(default)]
    excludes: Option<Circumstances>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Circumstances {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Reads a profile, for a process that has these capabilities.
pub(super) fn parse(text: &[u8], capabilities: Capabilities) -> Result<Profile, String> {
    let form: Form = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if form.listener_path.is_some() {
        return Err("it wants somebody to listen to calls, which rlaunch does not do".into());
    }
    let otherwise = answer(&form.default_action, form.default_errno_ret)?;
    let newer = if matches!(otherwise, Answer::Errno(_)) { ENOSYS } else { otherwise };
    let circumstances = Present { capabilities, kernel: kernel() };
    let calls = form.syscalls.unwrap_or_default().into_iter().filter(|call| circumstances.fit(call));
    let rules = calls.map(rule).collect::<Result<_, _>>()?;
    Ok(Profile { rules, otherwise, newer })
}

/// What rules depend on.
struct Present {
    capabilities: Capabilities,
    kernel: (u32, u32),
}

impl Present {
    fn fit(&self, call: &Syscall) -> bool {
        let all = |names: &[String]| names.iter().all(|name| self.has(name));
        let any = |names: &[String]| names.iter().any(|name| self.has(name));
        let includes = call.includes.as_ref().is_none_or(|wanted| {
            wanted.caps.as_deref().is_none_or(all)
                && wanted.arches.as_deref().is_none_or(is_native)
                && wanted.min_kernel.as_deref().is_none_or(|version| self.kernel >= parse_version(version))
        });
        let excludes = call.excludes.as_ref().is_some_and(|unwanted| {
            unwanted.caps.as_deref().is_some_and(any)
                || unwanted.arches.as_deref().is_some_and(is_native)
                || unwanted.min_kernel.as_deref().is_some_and(|version| self.kernel >= parse_version(version))
        });
        includes && !excludes
    }

    fn has(&self, name: &str) -> bool {
        let capability = Capabilities::named(name);
        !capability.is_empty() && self.capabilities.contains(capability)
    }
}

/// docker's words for architectures are Go's.
fn is_native(names: &[String]) -> bool {
    let native = match Architecture::NATIVE {
        Architecture::X86_64 | Architecture::I386 => "amd64",
        Architecture::Aarch64 => "arm64",
    };
    names.is_empty() || names.iter().any(|name| name == native)
}

fn kernel() -> (u32, u32) {
    nix::sys::utsname::uname().map_or((0, 0), |name| parse_version(&name.release().to_string_lossy()))
}

fn parse_version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|letter: char| !letter.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn rule(call: Syscall) -> Result<Rule, String> {
    let answer = answer(&call.action, call.errno_ret)?;
    let arguments = call.args.unwrap_or_default();
    if arguments.len() > ARGUMENTS {
        return Err(format!("a rule has {} conditions; there are only {ARGUMENTS} arguments", arguments.len()));
    }
    let conditions = arguments.iter().map(condition).collect::<Result<_, _>>()?;
    let names = call.names.into_iter().chain(call.name).map(Cow::Owned).collect();
    Ok(Rule { names, conditions, answer })
}

fn condition(argument: &Argument) -> Result<Condition, String> {
    if usize::from(argument.index) >= ARGUMENTS {
        return Err(format!("there is no argument {}", argument.index));
    }
    let plain = |comparison| Condition { argument: argument.index, mask: u64::MAX, comparison, value: argument.value };
    Ok(match argument.op.as_str() {
        "SCMP_CMP_EQ" => plain(Comparison::Equal),
        "SCMP_CMP_NE" => plain(Comparison::NotEqual),
        "SCMP_CMP_LT" => plain(Comparison::Less),
        "SCMP_CMP_LE" => plain(Comparison::LessOrEqual),
        "SCMP_CMP_GT" => plain(Comparison::Greater),
        "SCMP_CMP_GE" => plain(Comparison::GreaterOrEqual),
        "SCMP_CMP_MASKED_EQ" => {
            Condition { mask: argument.value, value: argument.value_two, ..plain(Comparison::Equal) }
        }
        other => return Err(format!("the comparison {other} is not known")),
    })
}

fn answer(action: &str, data: Option<u32>) -> Result<Answer, String> {
    // The kernel cuts off what is above; see seccomp(2).
    let number = data.map(|data| u16::try_from(data).map_err(|_| format!("{data} is no error number"))).transpose()?;
    let errno = number.unwrap_or(nix::libc::EPERM as u16);
    Ok(match action {
        "SCMP_ACT_ALLOW" => Answer::Allow,
        "SCMP_ACT_LOG" => Answer::Log,
        "SCMP_ACT_ERRNO" => Answer::Errno(errno),
        "SCMP_ACT_TRACE" => Answer::Trace(errno),
        "SCMP_ACT_TRAP" => Answer::Trap(0),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Answer::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Answer::KillProcess,
        other => return Err(format!("the action {other} is not known, or needs somebody who listens")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_conditions_on_capabilities_and_kernels_are_heeded() {
        let text = br#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "archMap": [], "syscalls": [
            {"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["b"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["c"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "2.6"}},
            {"names": ["d"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
            {"names": ["e"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
            {"names": ["f"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "includes": {}, "excludes": {}}]}"#;
        let names = |capabilities| -> Vec<String> {
            parse(text, capabilities)
                .unwrap()
                .rules
                .into_iter()
                .flat_map(|rule| rule.names)
                .map(Cow::into_owned)
                .collect()
        };
        assert_eq!(names(Capabilities::NONE), ["b", "c", "f"]);
        assert_eq!(names(Capabilities::ALL), ["a", "c", "f"]);
        assert_eq!(parse(text, Capabilities::NONE).unwrap().rules[2].answer, ENOSYS);
    }

    #[test]
    fn what_is_not_understood_is_refused_and_not_left_out() {
        for (text, reason) in [
            ("{", "EOF"),
            ("{}", "missing field"),
            (r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#, "SCMP_ACT_MAYBE"),
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "listens"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}"#, "listen"),
            (r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 65536}"#, "65536"),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#,
                "argument 6",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_XX"}]}]}"#,
                "SCMP_CMP_XX",
            ),
        ] {
            let error = parse(text.as_bytes(), Capabilities::NONE).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
