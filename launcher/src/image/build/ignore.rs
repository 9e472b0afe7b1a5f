//! Patterns: `.dockerignore`, and the wildcards of COPY.
//!
//! See <https://docs.docker.com/build/concepts/context/#syntax> and Go's `filepath.Match`.

/// What of a build context is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ignored {
    rules: Vec<Rule>,
    has_exceptions: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    pattern: Pattern,
    /// Whether what it matches is there after all.
    is_exception: bool,
}

impl Ignored {
    /// Reads a `.dockerignore`.
    ///
    /// # Errors
    /// Where a line of it is no pattern.
    pub(super) fn read(text: &[u8]) -> Result<Ignored, String> {
        let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
        let mut ignored = Ignored::default();
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let wrong = |why: &str| format!("line {number}: {why}");
            let (is_exception, line) = line.strip_prefix(b"!").map_or((false, line), |rest| (true, rest.trim_ascii()));
            if is_exception && line.is_empty() {
                return Err(wrong("there is no pattern behind the !"));
            }
            let pattern = clean(line);
            // The context itself is never left out.
            if !pattern.is_empty() {
                let pattern = Pattern::read(&pattern, true).map_err(wrong)?;
                ignored.rules.push(Rule { pattern, is_exception });
                ignored.has_exceptions |= is_exception;
            }
        }
        Ok(ignored)
    }

    /// Whether something is left out: the last rule that matches it, or a directory in which it is, says so.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        let parents = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| &path[..end]);
        let names: Vec<&[u8]> = parents.chain([path]).collect();
        let mut is_ignored = false;
        for rule in &self.rules {
            if rule.is_exception == is_ignored && names.iter().any(|name| rule.pattern.matches(name)) {
                is_ignored = !rule.is_exception;
            }
        }
        is_ignored
    }

    /// Whether something in a directory that is left out may be there after all.
    pub(super) fn has_exceptions(&self) -> bool {
        self.has_exceptions
    }
}

/// A path without what means nothing: slashes around it, and `.` and `..`, which lead no further than the context.
pub(crate) fn clean(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join(&b'/')
}

/// A pattern for paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Token>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`: anything but a slash.
    Any,
    /// `*`: any number of these.
    Star,
    /// `**/`: directories, or the beginning of a name.
    Directories,
    /// `**` at the end: all the rest.
    Rest,
    /// `[…]`: one of these ranges, or none of them.
    Class {
        ranges: Vec<(u8, u8)>,
        is_negated: bool,
    },
}

/// Whether a name of COPY is a pattern.
pub(super) fn is_pattern(text: &[u8]) -> bool {
    text.iter().any(|byte| matches!(byte, b'*' | b'?' | b'[' | b'\\'))
}

impl Pattern {
    /// Reads one; two stars mean more than one in `.dockerignore` only.
    ///
    /// # Errors
    /// Where a bracket is not closed, or nothing follows a backslash.
    pub(super) fn read(text: &[u8], has_double_stars: bool) -> Result<Pattern, &'static str> {
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some((first, mut after)) = rest.split_first() {
            match (first, after) {
                (b'*', [b'*', behind @ ..]) if has_double_stars => {
                    let behind = behind.strip_prefix(b"/").unwrap_or(behind);
                    tokens.push(if behind.is_empty() { Token::Rest } else { Token::Directories });
                    after = behind;
                }
                (b'*', _) => tokens.push(Token::Star),
                (b'?', _) => tokens.push(Token::Any),
                (b'[', inner) => {
                    let (class, behind) = class(inner)?;
                    tokens.push(class);
                    after = behind;
                }
                (b'\\', [literal, behind @ ..]) => {
                    tokens.push(Token::Byte(*literal));
                    after = behind;
                }
                (b'\\', []) => return Err("nothing follows the backslash"),
                (byte, _) => tokens.push(Token::Byte(*byte)),
            }
            rest = after;
        }
        Ok(Pattern(tokens))
    }

    /// Whether it is about all of a path. The time that it takes is bounded by the product of both lengths.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        // Where in the path the tokens so far may have ended.
        let mut ends = vec![false; path.len() + 1];
        ends[0] = true;
        for token in &self.0 {
            ends = token.step(path, &ends);
        }
        ends.last().copied().unwrap_or(false)
    }
}

impl Token {
    /// Where it may end, if it may begin in these places.
    fn step(&self, path: &[u8], begins: &[bool]) -> Vec<bool> {
        let mut ends = vec![false; begins.len()];
        // Whether a star, or a row of directories, that has begun goes on.
        let (mut in_star, mut in_rest) = (false, false);
        for at in 0..begins.len() {
            let before = at.checked_sub(1).and_then(|before| path.get(before)).copied();
            let begins_before = at > 0 && begins[at - 1];
            in_star = begins[at] || in_star && before != Some(b'/');
            in_rest |= begins[at];
            ends[at] = match self {
                Token::Star => in_star,
                Token::Rest => in_rest,
                // (.*/)|([^/]*)
                Token::Directories => in_star || in_rest && before == Some(b'/'),
                _ => begins_before && before.is_some_and(|byte| self.is(byte)),
            };
        }
        ends
    }

    /// Whether it is about one byte, and that is this one.
    fn is(&self, byte: u8) -> bool {
        match self {
            Token::Byte(own) => *own == byte,
            Token::Any => byte != b'/',
            Token::Class { ranges, is_negated } => {
                byte != b'/' && ranges.iter().any(|(first, last)| (*first..=*last).contains(&byte)) != *is_negated
            }
            Token::Star | Token::Rest | Token::Directories => false,
        }
    }
}

/// Reads what is in brackets.
fn class(text: &[u8]) -> Result<(Token, &[u8]), &'static str> {
    const OPEN: &str = "a bracket is not closed";
    let (is_negated, mut rest) = text.strip_prefix(b"^").map_or((false, text), |rest| (true, rest));
    let mut ranges = Vec::new();
    loop {
        if let (Some(behind), false) = (rest.strip_prefix(b"]"), ranges.is_empty()) {
            return Ok((Token::Class { ranges, is_negated }, behind));
        }
        let (first, behind) = literal(rest).ok_or(OPEN)?;
        rest = behind;
        let mut last = first;
        if let Some(behind) = rest.strip_prefix(b"-") {
            (last, rest) = literal(behind).ok_or(OPEN)?;
        }
        ranges.push((first, last));
    }
}

fn literal(text: &[u8]) -> Option<(u8, &[u8])> {
    match text {
        [b'\\', byte, rest @ ..] => Some((*byte, rest)),
        [b'\\'] | [] => None,
        [byte, rest @ ..] => Some((*byte, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_dockers_do() {
        for (pattern, path, expected) in [
            ("a", "a", true),
            ("a", "b/a", false),
            ("*", "a", true),
            ("*", "a/b", false),
            ("*/temp*", "x/temporary.txt", true),
            ("*/*/temp*", "x/y/temp", true),
            ("temp?", "tempa", true),
            ("temp?", "temp", false),
            ("**", "a/b/c", true),
            ("**/*.go", "x.go", true),
            ("**/*.go", "a/b/x.go", true),
            ("**/*.go", "a/b/x.gox", false),
            ("a/**", "a/b", true),
            ("a/**", "a", false),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("a/**/z", "a/bz", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[]]", "]", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
        ] {
            let found = Pattern::read(pattern.as_bytes(), true).unwrap().matches(path.as_bytes());
            assert_eq!(found, expected, "{pattern} {path}");
        }
        for pattern in ["[", "[a", "[a-", "\\", "[\\"] {
            assert!(Pattern::read(pattern.as_bytes(), true).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_takes_no_time_to_speak_of() {
        let pattern = "*a".repeat(500);
        assert!(!Pattern::read(pattern.as_bytes(), true).unwrap().matches(&[b'a'; 499]));
    }

    #[test]
    fn the_last_rule_wins_and_directories_take_their_content_along() {
        let ignored =
            Ignored::read(b"# comment\n/node_modules/\n*.md\n!README*.md\nREADME-secret.md\n a/../b \n!b/keep\n.\n")
                .unwrap();
        for (path, expected) in [
            ("node_modules", true),
            ("node_modules/x/y", true),
            ("x/node_modules", false),
            ("a.md", true),
            ("README.md", false),
            ("README-secret.md", true),
            ("b/x", true),
            ("b/keep", false),
            ("b/keep/y", false),
            ("c", false),
        ] {
            assert_eq!(ignored.matches(path.as_bytes()), expected, "{path}");
        }
        assert!(ignored.has_exceptions());
        assert!(Ignored::read(b"!").is_err() && Ignored::read(b"[a").is_err());
    }
}
