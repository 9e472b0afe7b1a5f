//! How a registry asks who is there: the header `WWW-Authenticate`; RFC 9110, 11.6.1, and the distribution project's
//! "Token Authentication Specification".

use std::collections::HashMap;

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A name and a password with each request.
    Basic,
    /// A token, which another server gives.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// Reads the headers of an answer; a token is better than a password.
    pub(super) fn read<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
        let challenges: Vec<Challenge> = headers.filter_map(one).collect();
        let bearer = challenges.iter().find(|challenge| **challenge != Challenge::Basic);
        bearer.or(challenges.first()).cloned()
    }
}

fn one(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    let mut parameters = scheme.eq_ignore_ascii_case("bearer").then(|| parameters(rest))?;
    let realm = parameters.remove("realm")?;
    Some(Challenge::Bearer { realm, service: parameters.remove("service"), scope: parameters.remove("scope") })
}

/// `key="value"` or `key=value`, with commas between them.
fn parameters(text: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted_value(quoted),
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        found.insert(key.trim().to_ascii_lowercase(), value);
        rest = after.trim_start_matches([',', ' ', '\t']);
    }
    found
}

/// A value up to its closing quote, and what follows it.
fn quoted_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            _ => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.into(), service: owned(service), scope: owned(scope) })
    }

    #[test]
    fn challenges_are_read() {
        for (header, expected) in [
            (r#"Basic realm="a, b""#, Some(Challenge::Basic)),
            (
                r#"Bearer realm="https://a/token",service="r",scope="repository:a:pull,push""#,
                bearer("https://a/token", Some("r"), Some("repository:a:pull,push")),
            ),
            (r#"bearer service=r , realm="https://a?x=\"1\"""#, bearer("https://a?x=\"1\"", Some("r"), None)),
            (r#"Bearer realm="https://a"#, bearer("https://a", None, None)),
            ("Bearer service=x", None),
            ("Bearer ,,=\"", None),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(one(header), expected, "{header}");
        }
    }

    #[test]
    fn a_token_is_taken_where_there_is_a_choice() {
        let both = ["Basic realm=x", "Bearer realm=y"];
        assert_eq!(Challenge::read(both.into_iter()), bearer("y", None, None));
        assert_eq!(Challenge::read(["Basic"].into_iter()), Some(Challenge::Basic));
        assert_eq!(Challenge::read(["Digest x=y"].into_iter()), None);
    }
}
