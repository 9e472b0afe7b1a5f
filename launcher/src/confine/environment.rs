//! `--env` and `--env-file`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use crate::failure::{Doing as _, Failure};

/// The variables that were asked for, in order; `lookup` is for names without a value. The files come first.
///
/// # Errors
/// Where a file cannot be read, or a line of it is no variable.
pub(crate) fn variables(
    files: &[PathBuf],
    words: &[OsString],
    lookup: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<Vec<(OsString, OsString)>, Failure> {
    let mut variables = Vec::new();
    for file in files {
        let doing = format!("read the environment from {}", file.display());
        let text = std::fs::read(file).doing(&doing)?;
        let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&text);
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
            if !line.is_empty() && !line.starts_with(b"#") {
                let variable = variable(line, &lookup);
                variables.extend(variable.map_err(|why| Failure::because(&doing, format!("line {number}: {why}")))?);
            }
        }
    }
    for word in words {
        let variable = variable(word.as_bytes(), &lookup);
        variables.extend(variable.map_err(|reason| Failure::because("set a variable of the environment", reason))?);
    }
    Ok(variables)
}

/// `NAME=VALUE`, or `NAME` for the caller's value; none, where the caller has no such variable.
fn variable(text: &[u8], lookup: &impl Fn(&OsStr) -> Option<OsString>) -> Result<Option<(OsString, OsString)>, String> {
    let (name, value) = match text.iter().position(|byte| *byte == b'=') {
        Some(end) => (OsStr::from_bytes(&text[..end]), Some(OsStr::from_bytes(&text[end + 1..]).to_owned())),
        None => (OsStr::from_bytes(text), lookup(OsStr::from_bytes(text))),
    };
    if name.is_empty() || name.as_bytes().iter().any(u8::is_ascii_whitespace) {
        return Err(format!("'{}' is no NAME=VALUE", OsStr::from_bytes(text).display()));
    }
    if text.contains(&0) {
        return Err("no variable holds a zero byte".into());
    }
    Ok(value.map(|value| (name.to_owned(), value)))
}

/// Sets variables in an environment: in place, so that each name is there once.
pub(crate) fn set(environment: &mut Vec<(OsString, OsString)>, variables: Vec<(OsString, OsString)>) {
    for (name, value) in variables {
        environment.retain(|(known, _)| *known != name);
        environment.push((name, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(texts: &[&str]) -> Result<Vec<(String, String)>, String> {
        let words: Vec<OsString> = texts.iter().map(OsString::from).collect();
        let lookup = |name: &OsStr| (name == "TERM").then(|| "vt100".into());
        let text = |text: OsString| text.into_string().unwrap();
        let variables = variables(&[], &words, lookup).map_err(|failure| failure.to_string())?;
        Ok(variables.into_iter().map(|(name, value)| (text(name), text(value))).collect())
    }

    #[test]
    fn a_name_without_a_value_is_the_callers() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            words(&["A=b=c", "TERM", "GONE", "EMPTY="]),
            Ok(vec![pair("A", "b=c"), pair("TERM", "vt100"), pair("EMPTY", "")])
        );
        for text in ["=x", "", "a b=c"] {
            assert!(words(&[text]).unwrap_err().contains("NAME=VALUE"), "{text}");
        }
    }

    #[test]
    fn a_file_has_comments_and_empty_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# comment\n\nA=1\r\n  B= x # not a comment\nTERM\n").unwrap();
        let lookup = |_: &OsStr| Some("vt100".into());
        let variables = variables(&[file.path().to_owned()], &["A=2".into()], lookup).unwrap();
        let mut environment = vec![("A".into(), "0".into())];
        set(&mut environment, variables);
        let expected: [(OsString, OsString); 3] =
            [("B".into(), " x # not a comment".into()), ("TERM".into(), "vt100".into()), ("A".into(), "2".into())];
        assert_eq!(environment, expected);
    }
}
