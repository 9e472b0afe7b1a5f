//! What an instruction of a Dockerfile says, before variables are replaced.
//!
//! What is not built here is refused before anything is done; buildah builds it.

use serde_json::{Value, json};

use super::expand::split;
use super::lines::{Line, Lines, Wrong};

/// An instruction, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instruction {
    /// Counted from 1.
    pub(super) line: usize,
    /// As it is shown.
    pub(super) text: String,
    pub(super) what: What,
}

/// Pairs of a name and a value.
pub(super) type Pairs = Vec<(String, String)>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    From {
        image: String,
        platform: Option<String>,
        name: Option<String>,
    },
    Arg(Vec<(String, Option<String>)>),
    Env(Pairs),
    Label(Pairs),
    Workdir(String),
    User(String),
    StopSignal(String),
    Maintainer(String),
    Expose(String),
    Volume(Vec<String>),
    Cmd(Command),
    Entrypoint(Command),
    Shell(Vec<String>),
    Run {
        command: Command,
        network: Option<&'static str>,
    },
    Copy(Copied),
    /// As docker keeps it in a configuration.
    Healthcheck(Value),
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// The words.
    Exec(Vec<String>),
    /// For the shell.
    Shell(String),
}

/// COPY and ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) sources: Vec<String>,
    pub(super) target: String,
    /// A stage or an image; the context, where there is none.
    pub(super) from: Option<String>,
    pub(super) owner: Option<String>,
    pub(super) mode: Option<u32>,
    /// Whether archives are unpacked: ADD.
    pub(super) unpacks: bool,
}

/// Understands all instructions.
///
/// # Errors
/// For the first one that is wrong, or not built here.
pub(super) fn parse(lines: &Lines) -> Result<Vec<Instruction>, Wrong> {
    let one = |line: &Line| {
        let wrong = |why: String| Wrong { line: line.number, why };
        let what = Words { line, escape: lines.escape }.what().map_err(wrong)?;
        let text = format!("{} {}", line.word, line.rest);
        Ok(Instruction { line: line.number, text, what })
    };
    lines.lines.iter().map(one).collect()
}

/// What is said of anything that buildah has to do.
fn refused(what: &str) -> String {
    format!("{what} is not built here (use buildah)")
}

struct Words<'a> {
    line: &'a Line,
    escape: char,
}

impl Words<'_> {
    fn what(&self) -> Result<What, String> {
        let (word, rest) = (self.line.word.as_str(), self.line.rest.as_str());
        let is_known = KNOWN.contains(&word);
        if is_known && rest.is_empty() {
            return Err(format!("{word} says nothing"));
        }
        Ok(match word {
            "FROM" => self.from()?,
            "ARG" => What::Arg(self.arguments()?),
            "ENV" => What::Env(self.pairs()?),
            "LABEL" => What::Label(self.pairs()?),
            "WORKDIR" => What::Workdir(rest.to_owned()),
            "USER" => What::User(rest.to_owned()),
            "STOPSIGNAL" => What::StopSignal(rest.to_owned()),
            "MAINTAINER" => What::Maintainer(rest.to_owned()),
            "EXPOSE" => What::Expose(rest.to_owned()),
            "VOLUME" => What::Volume(list(rest)?.unwrap_or_else(|| words(rest))),
            "CMD" => What::Cmd(command(rest)?),
            "ENTRYPOINT" => What::Entrypoint(command(rest)?),
            "SHELL" => match list(rest)? {
                Some(words) if !words.is_empty() => What::Shell(words),
                _ => return Err("SHELL takes a list of words, as in SHELL [\"/bin/sh\", \"-c\"]".into()),
            },
            "RUN" => self.run()?,
            "COPY" | "ADD" => What::Copy(self.copy()?),
            "HEALTHCHECK" => What::Healthcheck(healthcheck(rest)?),
            "ONBUILD" => return Err(refused("ONBUILD")),
            _ => {
                let shown: String = word.chars().take(40).collect();
                return Err(format!("there is no instruction {}", shown.escape_debug()));
            }
        })
    }

    fn from(&self) -> Result<What, String> {
        let (flags, rest) = flags(&self.line.rest);
        let mut platform = None;
        for (name, value) in flags {
            match (name, value) {
                ("platform", Some(value)) => platform = Some(value.to_owned()),
                _ => return Err(refused(&format!("FROM --{name}"))),
            }
        }
        let words = words(rest);
        let (image, name) = match words.as_slice() {
            [image] => (image, None),
            [image, word, name] if word.eq_ignore_ascii_case("as") => (image, Some(name.to_ascii_lowercase())),
            _ => return Err("FROM takes an image, and perhaps AS with a name".into()),
        };
        let is_name = |name: &String| {
            name.starts_with(|first: char| first.is_ascii_lowercase())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        };
        match name.as_ref().filter(|name| !is_name(name) || *name == "scratch") {
            Some(name) => Err(format!("{} is no name of a stage", name.escape_debug())),
            None => Ok(What::From { image: image.clone(), platform, name }),
        }
    }

    fn arguments(&self) -> Result<Vec<(String, Option<String>)>, String> {
        let argument = |word: String| match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let all: Vec<_> = split(&self.line.rest, self.escape).into_iter().map(argument).collect();
        match all.iter().find(|(name, _)| !is_variable(name)) {
            Some((name, _)) => Err(format!("{} is no name of an argument", name.escape_debug())),
            None => Ok(all),
        }
    }

    /// `NAME=VALUE` several times, or `NAME VALUE` once.
    fn pairs(&self) -> Result<Pairs, String> {
        let (word, rest) = (&self.line.word, &self.line.rest);
        let all = split(rest, self.escape);
        if !all.first().is_some_and(|first| first.contains('=')) {
            let (name, value) =
                rest.split_once(char::is_whitespace).ok_or_else(|| format!("{word} {rest} has no value"))?;
            return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
        }
        let pair = |text: String| match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("{} is no NAME=VALUE", text.escape_debug())),
        };
        all.into_iter().map(pair).collect()
    }

    fn run(&self) -> Result<What, String> {
        let (flags, rest) = flags(&self.line.rest);
        let mut network = None;
        for (name, value) in flags {
            network = match (name, value) {
                ("network", Some("default")) => None,
                ("network", Some("none")) => Some("none"),
                ("network", Some("host")) => Some("host"),
                _ => return Err(refused(&format!("RUN --{name}"))),
            };
        }
        if rest.is_empty() {
            return Err("RUN says nothing".into());
        }
        let documents = &self.line.heredocs;
        let command = match documents.as_slice() {
            [] => command(rest)?,
            // The document itself is the script.
            [only] if !rest.contains(char::is_whitespace) => match only.content.starts_with("#!") {
                true => return Err(refused("a here-document that names its interpreter")),
                false => Command::Shell(only.content.clone()),
            },
            all => {
                let texts = all.iter().map(|document| format!("{}{}\n", document.content, document.name));
                Command::Shell(format!("{rest}\n{}", texts.collect::<String>()))
            }
        };
        if command == Command::Exec(Vec::new()) {
            return Err("RUN says nothing".into());
        }
        Ok(What::Run { command, network })
    }

    fn copy(&self) -> Result<Copied, String> {
        let word = self.line.word.as_str();
        if !self.line.heredocs.is_empty() {
            return Err(refused(&format!("{word} of a here-document")));
        }
        let (flags, rest) = flags(&self.line.rest);
        let unpacks = word == "ADD";
        let (mut from, mut owner, mut mode) = (None, None, None);
        for (name, value) in flags {
            match (name, value) {
                ("from", Some(value)) if !unpacks && !value.is_empty() => from = Some(value.to_owned()),
                ("chown", Some(value)) if !value.is_empty() => owner = Some(value.to_owned()),
                ("chmod", Some(value)) => mode = Some(octal(value)?),
                // How the layer is made, not what is in it.
                ("link", None | Some("true" | "false")) => {}
                _ => return Err(refused(&format!("{word} --{name}"))),
            }
        }
        let mut sources = list(rest)?.unwrap_or_else(|| words(rest));
        let target = sources.pop().filter(|_| !sources.is_empty());
        let target = target.ok_or_else(|| format!("{word} takes what is copied, and where to"))?;
        if let Some(far) = sources.iter().filter(|_| unpacks).find(|source| is_far(source)) {
            return Err(refused(&format!("ADD of {}, which is not in the context,", far.escape_debug())));
        }
        Ok(Copied { sources, target, from, owner, mode, unpacks })
    }
}

const KNOWN: [&str; 18] = [
    "FROM",
    "ARG",
    "ENV",
    "LABEL",
    "WORKDIR",
    "USER",
    "STOPSIGNAL",
    "MAINTAINER",
    "EXPOSE",
    "VOLUME",
    "CMD",
    "ENTRYPOINT",
    "SHELL",
    "RUN",
    "COPY",
    "ADD",
    "HEALTHCHECK",
    "ONBUILD",
];

/// Whether ADD would have to fetch it.
pub(super) fn is_far(source: &str) -> bool {
    ["http://", "https://", "ftp://", "git://", "ssh://", "git@"].iter().any(|start| source.starts_with(start))
}

/// Whether it can be the name of a variable.
pub(super) fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'=' | b'"' | b'\'' | b'$'))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// The flags at the beginning: `--NAME` or `--NAME=VALUE`.
fn flags(text: &str) -> (Vec<(&str, Option<&str>)>, &str) {
    let mut flags = Vec::new();
    let mut rest = text;
    while let Some(flag) = rest.strip_prefix("--") {
        let (word, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        rest = after.trim_start();
        if word.is_empty() {
            break;
        }
        flags.push(word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value))));
    }
    (flags, rest)
}

/// A JSON list is the command itself; anything else, also what only looks like one, is for the shell.
fn command(text: &str) -> Result<Command, String> {
    Ok(list(text)?.map_or_else(|| Command::Shell(text.to_owned()), Command::Exec))
}

/// A JSON list of words, if it is a list.
fn list(text: &str) -> Result<Option<Vec<String>>, String> {
    let Ok(Value::Array(values)) = serde_json::from_str(text) else { return Ok(None) };
    let word = |value: Value| match value {
        Value::String(word) => Ok(word),
        other => Err(format!("{other} in the list is no word in quotes")),
    };
    values.into_iter().map(word).collect::<Result<_, _>>().map(Some)
}

fn octal(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777 && !text.starts_with('+'));
    mode.ok_or_else(|| format!("--chmod={} is no octal number up to 7777 (use buildah)", text.escape_debug()))
}

/// HEALTHCHECK, in the form that docker gives it in a configuration.
fn healthcheck(text: &str) -> Result<Value, String> {
    let (flags, rest) = flags(text);
    let (word, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let mut check = match word.to_ascii_uppercase().as_str() {
        "NONE" if rest.trim().is_empty() && flags.is_empty() => return Ok(json!({ "Test": ["NONE"] })),
        "CMD" if !rest.trim().is_empty() => match command(rest.trim())? {
            Command::Exec(words) => {
                let test: Vec<String> = ["CMD".to_owned()].into_iter().chain(words).collect();
                json!({ "Test": test })
            }
            Command::Shell(text) => json!({ "Test": ["CMD-SHELL", text] }),
        },
        _ => return Err("HEALTHCHECK takes NONE, or CMD with a command".into()),
    };
    for (name, value) in flags {
        let value = value.unwrap_or_default();
        let (key, value) = match name {
            "interval" => ("Interval", nanoseconds(value)),
            "timeout" => ("Timeout", nanoseconds(value)),
            "start-period" => ("StartPeriod", nanoseconds(value)),
            "start-interval" => ("StartInterval", nanoseconds(value)),
            "retries" => ("Retries", value.parse::<u32>().ok().map(u64::from)),
            _ => return Err(refused(&format!("HEALTHCHECK --{name}"))),
        };
        check[key] = json!(value.ok_or_else(|| format!("HEALTHCHECK --{name} has a wrong value"))?);
    }
    Ok(check)
}

/// A time as Go writes it: `1m30s`, `500ms`.
fn nanoseconds(text: &str) -> Option<u64> {
    let mut total: u64 = 0;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|one: char| !one.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|one: char| one.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let factor = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        rest = after;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::build::lines;

    fn one(text: &str) -> Result<What, String> {
        let lines = lines::read(text).map_err(|wrong| wrong.why)?;
        parse(&lines).map(|mut all| all.remove(0).what).map_err(|wrong| wrong.why)
    }

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn commands_have_two_forms() {
        let shell = |text: &str| Command::Shell(text.into());
        for (text, command) in [
            ("CMD [\"a\", \"b c\"]", Command::Exec(owned(&["a", "b c"]))),
            ("CMD [ -f x ] && y", shell("[ -f x ] && y")),
            ("CMD ['a']", shell("['a']")),
            ("CMD echo  \"$A\"", shell("echo  \"$A\"")),
        ] {
            assert_eq!(one(text), Ok(What::Cmd(command)), "{text}");
        }
        let run = |command: Command| Ok(What::Run { command, network: None });
        assert_eq!(one("RUN <<EOF\na\nb\nEOF\n"), run(shell("a\nb\n")));
        assert_eq!(one("RUN cat <<EOF > /x\na\nEOF\n"), run(shell("cat <<EOF > /x\na\nEOF\n")));
        let none = What::Run { command: shell("x"), network: Some("none") };
        assert_eq!(one("RUN --network=none x"), Ok(none));
    }

    #[test]
    fn copies_have_sources_and_a_target() {
        let plain = Copied {
            sources: owned(&["a", "b"]),
            target: "/c/".into(),
            from: None,
            owner: None,
            mode: None,
            unpacks: false,
        };
        assert_eq!(one("COPY a b /c/"), Ok(What::Copy(plain.clone())));
        let json = Copied { sources: owned(&["a b"]), target: "c d".into(), unpacks: true, ..plain.clone() };
        assert_eq!(one("ADD [\"a b\", \"c d\"]"), Ok(What::Copy(json)));
        let all = Copied { from: Some("x".into()), owner: Some("u:g".into()), mode: Some(0o755), ..plain };
        assert_eq!(one("COPY --from=x --chown=u:g --chmod=755 --link a b /c/"), Ok(What::Copy(all)));
    }

    #[test]
    fn names_have_values_in_both_forms() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(one("ENV NAME World wide"), Ok(What::Env(vec![pair("NAME", "World wide")])));
        assert_eq!(one("LABEL a=\"b c\" 'd'=e"), Ok(What::Label(vec![pair("a", "\"b c\""), pair("'d'", "e")])));
        assert_eq!(one("ARG A B=c"), Ok(What::Arg(vec![("A".into(), None), ("B".into(), Some("c".into()))])));
    }

    #[test]
    fn a_healthcheck_is_kept_as_docker_keeps_it() {
        let check = one("HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD curl -f http://x");
        let expected = json!({ "Test": ["CMD-SHELL", "curl -f http://x"], "Interval": 90_000_000_000_u64,
            "Timeout": 500_000_000, "Retries": 3 });
        assert_eq!(check, Ok(What::Healthcheck(expected)));
        assert_eq!(one("HEALTHCHECK NONE"), Ok(What::Healthcheck(json!({ "Test": ["NONE"] }))));
    }

    #[test]
    fn what_is_not_built_here_is_for_buildah() {
        for text in [
            "ONBUILD RUN x",
            "RUN --mount=type=cache,target=/x y",
            "RUN --security=insecure x",
            "RUN <<EOF\n#!/usr/bin/python\nEOF\n",
            "COPY <<EOF /x\na\nEOF\n",
            "COPY --parents a b",
            "COPY --chmod=u+x a b",
            "ADD https://example.org/x /x",
            "ADD --checksum=x a b",
            "FROM --x=y z",
        ] {
            assert!(one(text).is_err_and(|why| why.contains("use buildah")), "{text}");
        }
    }

    #[test]
    fn what_is_no_instruction_is_refused() {
        for text in [
            "FROM",
            "FROM a b",
            "FROM a AS 1x",
            "FROM a AS scratch",
            "COPY a",
            "COPY [\"a\"]",
            "CMD [1]",
            "RUN []",
            "RUN --network=none",
            "ENV A",
            "ENV A=b C",
            "ENV =b",
            "ARG =x",
            "ARG \"a b\"",
            "SHELL /bin/sh",
            "HEALTHCHECK x",
            "HEALTHCHECK --interval=1 CMD x",
            "HEALTHCHECK --interval=99999999999999999999h CMD x",
            "NOSUCH thing",
        ] {
            assert!(one(text).is_err(), "{text}");
        }
    }
}
