//! Words of a Dockerfile: quotes, escapes and variables.
//!
//! See <https://docs.docker.com/reference/dockerfile/#environment-replacement>.

use std::iter::Peekable;
use std::str::Chars;

/// Defaults may hold variables with defaults, but not without end.
const DEEPEST: usize = 32;

/// Replaces variables, and removes quotes and escapes.
#[derive(Clone, Copy)]
pub(super) struct Expansion<'a> {
    pub(super) escape: char,
    /// The value of a variable.
    pub(super) lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl Expansion<'_> {
    /// One word, whatever blanks are in it.
    ///
    /// # Errors
    /// Where a quote or a brace is not closed, or a form of replacement is not known.
    pub(super) fn word(self, text: &str) -> Result<String, String> {
        self.part(&mut text.chars().peekable(), None, 0).map_err(|why| format!("{text}: {why}"))
    }

    /// Several words, which blanks in the value of a variable divide, too.
    ///
    /// # Errors
    /// As for one word.
    pub(super) fn words(self, text: &str) -> Result<Vec<String>, String> {
        let mut words = Vec::new();
        for part in split(text, self.escape) {
            let value = self.word(&part)?;
            words.extend(value.split_whitespace().map(str::to_owned));
        }
        Ok(words)
    }

    /// Up to a character that is no part of a quote, or the end.
    fn part(self, rest: &mut Peekable<Chars<'_>>, stop: Option<char>, depth: usize) -> Result<String, String> {
        if depth > DEEPEST {
            return Err("there are too many braces in each other".into());
        }
        let mut value = String::new();
        while let Some(one) = rest.next() {
            match one {
                _ if stop == Some(one) => return Ok(value),
                '\'' => self.single_quoted(rest, &mut value)?,
                '"' => self.double_quoted(rest, &mut value, depth)?,
                '$' => value.push_str(&self.variable(rest, depth)?),
                // At the end there is nothing to take the meaning from.
                _ if one == self.escape => value.extend(rest.next()),
                _ => value.push(one),
            }
        }
        stop.map_or(Ok(value), |stop| Err(format!("a '{stop}' is missing")))
    }

    fn single_quoted(self, rest: &mut Peekable<Chars<'_>>, value: &mut String) -> Result<(), String> {
        for one in rest.by_ref() {
            if one == '\'' {
                return Ok(());
            }
            value.push(one);
        }
        Err("a single quote is not closed".into())
    }

    fn double_quoted(self, rest: &mut Peekable<Chars<'_>>, value: &mut String, depth: usize) -> Result<(), String> {
        while let Some(one) = rest.next() {
            match one {
                '"' => return Ok(()),
                '$' => value.push_str(&self.variable(rest, depth)?),
                _ if one == self.escape => {
                    // As in a shell, before anything else it is an ordinary character.
                    match rest.next_if(|next| matches!(next, '"' | '$') || *next == self.escape) {
                        Some(next) => value.push(next),
                        None => value.push(one),
                    }
                }
                _ => value.push(one),
            }
        }
        Err("a double quote is not closed".into())
    }

    /// Behind a dollar sign.
    fn variable(self, rest: &mut Peekable<Chars<'_>>, depth: usize) -> Result<String, String> {
        if rest.next_if_eq(&'{').is_none() {
            let name = name(rest);
            return Ok(if name.is_empty() { "$".into() } else { (self.lookup)(&name).unwrap_or_default() });
        }
        let name = name(rest);
        if name.is_empty() {
            return Err("there is no name in ${}".into());
        }
        let value = (self.lookup)(&name);
        let (value, how) = match rest.next() {
            Some('}') => return Ok(value.unwrap_or_default()),
            // With a colon, an empty value is none.
            Some(':') => (value.filter(|value| !value.is_empty()), rest.next()),
            how => (value, how),
        };
        match how {
            Some('-') => self.part(rest, Some('}'), depth + 1).map(|word| value.unwrap_or(word)),
            Some('+') => self.part(rest, Some('}'), depth + 1).map(|word| value.map_or(String::new(), |_| word)),
            Some('?') => {
                let word = self.part(rest, Some('}'), depth + 1)?;
                let word = if word.is_empty() { "it has no value".into() } else { word };
                value.ok_or_else(|| format!("{name}: {word}"))
            }
            Some(other) => Err(format!("'{other}' in ${{{name}}} is not known: :- :+ :? and - + ? are (use buildah)")),
            None => Err("a '}' is missing".into()),
        }
    }
}

/// A name, a number, or one of the shell's own characters.
fn name(rest: &mut Peekable<Chars<'_>>) -> String {
    let mut name = String::new();
    let is_word = |one: &char| one.is_ascii_alphanumeric() || *one == '_';
    match rest.peek() {
        Some(first) if first.is_ascii_digit() => {
            while let Some(one) = rest.next_if(char::is_ascii_digit) {
                name.push(one);
            }
        }
        Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => name.extend(rest.next()),
        _ => {
            while let Some(one) = rest.next_if(is_word) {
                name.push(one);
            }
        }
    }
    name
}

/// Divides at blanks that are neither quoted nor escaped. Quotes and escapes stay.
pub(super) fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut rest = text.chars();
    while let Some(one) = rest.next() {
        match one {
            _ if one == escape && quote != Some('\'') => {
                word.push(one);
                word.extend(rest.next());
                continue;
            }
            _ if quote == Some(one) => quote = None,
            '"' | '\'' if quote.is_none() => quote = Some(one),
            _ if one.is_whitespace() && quote.is_none() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            _ => {}
        }
        word.push(one);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        [("A", "one"), ("E", ""), ("S", "x y"), ("LONG_1", "l")]
            .iter()
            .find(|(known, _)| *known == name)
            .map(|pair| pair.1.into())
    }

    fn word(text: &str) -> Result<String, String> {
        Expansion { escape: '\\', lookup: &lookup }.word(text)
    }

    #[test]
    fn variables_are_replaced_as_dockers_reference_says() {
        for (text, value) in [
            ("$A", "one"),
            ("${A}x$LONG_1-$GONE.", "onexl-."),
            ("\\$A \\\\$A", "$A \\one"),
            ("'$A'", "$A"),
            ("\"$A\\\"\\$\\a\"", "one\"$\\a"),
            ("${A:-d}${E:-d}${G:-d}", "onedd"),
            ("${A-d}${E-d}${G-d}", "oned"),
            ("${A:+d}${E:+d}${G:+d}", "d"),
            ("${A+d}${E+d}${G+d}", "dd"),
            ("${G:-${E:-$A}}", "one"),
            ("${G:-\"a } b\"}", "a } b"),
            ("${A:?no}", "one"),
            ("a$", "a$"),
            ("$ $. $1 $@", "$ $.  "),
            ("a\\", "a"),
            ("a\"b c\"'d'", "ab cd"),
            ("$S", "x y"),
        ] {
            assert_eq!(word(text).as_deref(), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_not_closed_or_not_known_is_refused() {
        let deep = "${G:-".repeat(5_000);
        for text in
            ["'a", "\"a", "${A", "${", "${}", "${A:", "${A:-b", "${A%b}", "${A:=b}", "${G:?gone}", "${G?}", &deep]
        {
            assert!(word(text).is_err(), "{text}");
        }
    }

    #[test]
    fn words_are_divided_at_blanks_outside_of_quotes() {
        assert_eq!(split(" a \"b c\"=d\\ e  'f \\' g'", '\\'), ["a", "\"b c\"=d\\ e", "'f \\'", "g'"]);
        let words = Expansion { escape: '\\', lookup: &lookup }.words("80 $S \"$A\"");
        assert_eq!(words, Ok(vec!["80".to_owned(), "x".into(), "y".into(), "one".into()]));
    }
}
