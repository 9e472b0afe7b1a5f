//! `--change`: instructions of a Dockerfile that change how an image is run.

use serde_json::{Map, Value, json};

use super::build::clean;
use crate::process::number::SignalNumber;

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    key: &'static str,
    how: How,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum How {
    /// The value is this one.
    Is(Value),
    /// These names are in a set.
    Has(Vec<String>),
    /// These names have these values.
    Pairs(Vec<(String, String)>),
    /// It is this path, from what it was where that does not begin at the root.
    Within(String),
    /// These variables have these values, in a list.
    Variables(Vec<(String, String)>),
}

/// Reads an instruction.
///
/// # Errors
/// Where it is none that can be followed.
pub(crate) fn parse(text: &str) -> Result<Change, String> {
    let (word, rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err("an instruction and what it says are expected, as in 'USER web'".into());
    }
    let (key, how) = match word.to_ascii_uppercase().as_str() {
        "CMD" => ("Cmd", How::Is(command(rest)?)),
        "ENTRYPOINT" => ("Entrypoint", How::Is(command(rest)?)),
        "USER" => ("User", How::Is(json!(rest))),
        "WORKDIR" => ("WorkingDir", How::Within(rest.to_owned())),
        "STOPSIGNAL" => {
            rest.parse::<SignalNumber>()?;
            ("StopSignal", How::Is(json!(rest)))
        }
        "ENV" => ("Env", How::Variables(pairs(rest)?)),
        "LABEL" => ("Labels", How::Pairs(pairs(rest)?)),
        "EXPOSE" => {
            ("ExposedPorts", How::Has(rest.split_whitespace().map(ports).collect::<Result<Vec<_>, _>>()?.concat()))
        }
        "VOLUME" => ("Volumes", How::Has(list(rest)?.unwrap_or_else(|| words(rest)))),
        _ => {
            return Err(format!(
                "{word} cannot be changed: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR can"
            ));
        }
    };
    Ok(Change { key, how })
}

impl Change {
    /// The value of this key is this one.
    pub(super) fn is(key: &'static str, value: Value) -> Change {
        Change { key, how: How::Is(value) }
    }

    /// These names are in the set of this key.
    pub(super) fn has(key: &'static str, names: Vec<String>) -> Change {
        Change { key, how: How::Has(names) }
    }

    /// These names have these values.
    pub(super) fn pairs(key: &'static str, pairs: Vec<(String, String)>) -> Change {
        Change { key, how: How::Pairs(pairs) }
    }

    /// The same in a list.
    pub(super) fn variables(key: &'static str, pairs: Vec<(String, String)>) -> Change {
        Change { key, how: How::Variables(pairs) }
    }

    /// Makes it, in the part of a configuration that says how an image is run.
    pub(crate) fn make(&self, execution: &mut Map<String, Value>) {
        let entry = execution.entry(self.key).or_insert(Value::Null);
        // Whoever has made the image may have put anything there.
        if matches!(self.how, How::Has(_) | How::Pairs(_)) && !entry.is_object() {
            *entry = json!({});
        }
        match &self.how {
            How::Is(value) => *entry = value.clone(),
            How::Within(path) => *entry = json!(within(entry.as_str().unwrap_or_default(), path)),
            How::Has(names) => names.iter().for_each(|name| entry[name] = json!({})),
            How::Pairs(pairs) => pairs.iter().for_each(|(name, value)| entry[name] = json!(value)),
            How::Variables(pairs) => {
                let mut list = entry.as_array().cloned().unwrap_or_default();
                for (name, value) in pairs {
                    let is_it = |one: &Value| one.as_str().is_some_and(|text| text.split('=').next() == Some(name));
                    let text = json!(format!("{name}={value}"));
                    match list.iter_mut().find(|one| is_it(one)) {
                        Some(one) => *one = text,
                        None => list.push(text),
                    }
                }
                *entry = json!(list);
            }
        }
    }
}

/// A path of an image, which begins where another one leads to, and leads no further than the root.
pub(super) fn within(before: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{before}/{path}") };
    format!("/{}", String::from_utf8_lossy(&clean(whole.as_bytes())))
}

/// A JSON list is the command itself; anything else is for the shell.
fn command(text: &str) -> Result<Value, String> {
    Ok(match list(text)? {
        Some(words) => json!(words),
        None => json!(["/bin/sh", "-c", text]),
    })
}

/// A JSON list of words, if it is one.
fn list(text: &str) -> Result<Option<Vec<String>>, String> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    serde_json::from_str(text).map(Some).map_err(|error| format!("{text} is no list of words: {error}"))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// `80`, `53/udp` or `8000-8010`, as a configuration has them.
pub(super) fn ports(word: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("{} is no port", word.escape_debug());
    let (numbers, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(wrong());
    }
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number > 0 && !text.starts_with('+'));
    let (first, last) = number(first).zip(number(last)).filter(|(first, last)| first <= last).ok_or_else(wrong)?;
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// `NAME=VALUE` several times, with quotes around values that have blanks; or `NAME VALUE` once.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = text.split_once(char::is_whitespace).ok_or_else(|| format!("{text} has no value"))?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{word} is no NAME=VALUE")),
    };
    unquoted(text)?.into_iter().map(pair).collect()
}

/// Words between blanks; quotes hold blanks together, and a backslash takes the meaning from what follows it.
fn unquoted(text: &str) -> Result<Vec<String>, String> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = text.chars();
    while let Some(one) = rest.next() {
        match one {
            '\\' if quote != Some('\'') => word.get_or_insert_default().extend(rest.next()),
            _ if quote == Some(one) => quote = None,
            '"' | '\'' if quote.is_none() => {
                quote = Some(one);
                word.get_or_insert_default();
            }
            _ if one.is_whitespace() && quote.is_none() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(one),
        }
    }
    if quote.is_some() {
        return Err(format!("{text}: a quote is not closed"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_change_what_is_there() {
        let mut execution = json!({ "Env": ["A=1", "B=2"], "Cmd": ["old"] }).as_object().cloned().unwrap();
        for text in [
            r#"CMD ["a", "b c"]"#,
            "entrypoint exec x",
            r#"ENV B=3 C="d e" D='f"'"#,
            "ENV E one two",
            "USER web",
            "WORKDIR /srv",
            "EXPOSE 80 53/udp",
            "VOLUME /data",
            "LABEL a=b",
            "STOPSIGNAL SIGINT",
        ] {
            parse(text).unwrap().make(&mut execution);
        }
        let expected = json!({
            "Env": ["A=1", "B=3", "C=d e", "D=f\"", "E=one two"],
            "Cmd": ["a", "b c"],
            "Entrypoint": ["/bin/sh", "-c", "exec x"],
            "User": "web",
            "WorkingDir": "/srv",
            "ExposedPorts": { "80/tcp": {}, "53/udp": {} },
            "Volumes": { "/data": {} },
            "Labels": { "a": "b" },
            "StopSignal": "SIGINT",
        });
        assert_eq!(Value::Object(execution), expected);
    }

    #[test]
    fn what_makes_no_sense_in_an_image_is_replaced() {
        let odd = json!({ "Labels": "x", "Volumes": [1], "Env": 7, "ExposedPorts": true });
        let mut execution = odd.as_object().cloned().unwrap();
        for text in ["LABEL a=b", "VOLUME /v", "ENV A=b", "EXPOSE 1"] {
            parse(text).unwrap().make(&mut execution);
        }
        let expected =
            json!({ "Labels": { "a": "b" }, "Volumes": { "/v": {} }, "Env": ["A=b"], "ExposedPorts": { "1/tcp": {} } });
        assert_eq!(Value::Object(execution), expected);
    }

    #[test]
    fn ports_may_be_a_range() {
        assert_eq!(ports("80"), Ok(vec!["80/tcp".to_owned()]));
        assert_eq!(ports("8000-8001/UDP"), Ok(vec!["8000/udp".to_owned(), "8001/udp".to_owned()]));
        for text in ["", "0", "x", "2-1", "70000", "1/icmp", "+1", "1-2-3"] {
            assert!(ports(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_working_directory_begins_where_the_last_one_is() {
        for (before, path, expected) in [
            ("", "a", "/a"),
            ("/a/", "b/../c", "/a/c"),
            ("/a", "/b/", "/b"),
            ("/a", "../../..", "/"),
            ("odd", "x", "/odd/x"),
        ] {
            let mut execution = json!({ "WorkingDir": before }).as_object().cloned().unwrap();
            parse(&format!("WORKDIR {path}")).unwrap().make(&mut execution);
            assert_eq!(execution["WorkingDir"], expected, "{before} {path}");
        }
    }

    #[test]
    fn what_is_no_instruction_is_refused() {
        for text in [
            "",
            "CMD",
            "RUN make",
            "CMD [1]",
            "ENV A",
            "ENV A=\"b",
            "ENV =b",
            "CMD [\"a\"",
            "STOPSIGNAL BAD",
            "EXPOSE http",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
