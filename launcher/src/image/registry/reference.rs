//! What an image is called in a registry: `[HOST[:PORT]/]PATH[:TAG|@DIGEST]`, with docker's defaults.

use crate::failure::Failure;
use crate::image::digest::Digest;

/// The registry of those that name none.
const DEFAULT_HOST: &str = "docker.io";
/// What others call it.
const OTHER_NAMES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
/// Where its interface is.
const DEFAULT_SERVER: &str = "registry-1.docker.io";
const DEFAULT_TAG: &str = "latest";
const LONGEST: usize = 255;

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    /// The registry's name, with its port where one was given.
    pub(crate) host: String,
    /// The path there.
    pub(crate) path: String,
    pub(crate) version: Version,
}

/// Which one of the images of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Version {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    /// Reads one, with or without the `docker://` of other tools. With a tag and a digest, the digest says which.
    ///
    /// # Errors
    /// Where the text is none.
    pub(crate) fn parse(text: &str) -> Result<Reference, Failure> {
        read(text.strip_prefix("docker://").unwrap_or(text)).ok_or_else(|| {
            let shown: String = text.chars().take(300).collect();
            Failure::new(format!("'{}' is no name of an image in a registry", shown.escape_debug())).remedy(
                "[HOST[:PORT]/]NAME[:TAG] or NAME@sha256:DIGEST, where NAME is of small letters, digits and . _ - /",
            )
        })
    }

    /// What the image is called in the store.
    pub(crate) fn name(&self) -> String {
        format!("{}{}", self.place(), self.version.suffix())
    }

    /// The registry and the path.
    pub(crate) fn place(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }
}

impl Version {
    /// As requests name it.
    pub(crate) fn word(&self) -> String {
        match self {
            Version::Tag(tag) => tag.clone(),
            Version::Digest(digest) => digest.to_string(),
        }
    }

    fn suffix(&self) -> String {
        match self {
            Version::Tag(tag) => format!(":{tag}"),
            Version::Digest(digest) => format!("@{digest}"),
        }
    }
}

/// The machine that answers for a registry.
pub(crate) fn server(host: &str) -> &str {
    if host == DEFAULT_HOST { DEFAULT_SERVER } else { host }
}

/// Reads the name of a registry alone, as `login` has it.
///
/// # Errors
/// Where the text is none.
pub(crate) fn parse_host(text: &str) -> Result<String, Failure> {
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    // What docker calls its registry has a path.
    let host = bare.split('/').next().unwrap_or_default();
    let problem = || Failure::new(format!("'{}' is no name of a registry", text.escape_debug())).remedy("HOST[:PORT]");
    is_host(host).then(|| usual(host)).ok_or_else(problem)
}

fn read(text: &str) -> Option<Reference> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse().ok()?)),
        None => (text, None),
    };
    let (host, rest) = match rest.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (usual(host), rest),
        _ => (DEFAULT_HOST.to_owned(), rest),
    };
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) => (path, tag),
        None => (rest, DEFAULT_TAG),
    };
    let is_short = host == DEFAULT_HOST && !path.contains('/');
    let path = if is_short { format!("library/{path}") } else { path.to_owned() };
    let is_whole = is_host(&host) && path.split('/').all(is_part) && is_tag(tag) && host.len() + path.len() < LONGEST;
    let version = digest.map_or_else(|| Version::Tag(tag.to_owned()), Version::Digest);
    is_whole.then_some(Reference { host, path, version })
}

fn usual(host: &str) -> String {
    if OTHER_NAMES.contains(&host) { DEFAULT_HOST.to_owned() } else { host.to_owned() }
}

fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').unwrap_or((text, "1"));
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.bytes().all(is_inner) && !label.starts_with('-')
    };
    name.split('.').all(is_label) && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// See the distribution specification, "Pulling manifests".
fn is_part(part: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_inner = |byte: u8| is_word(&byte) || matches!(byte, b'.' | b'_' | b'-');
    let ends = [part.as_bytes().first(), part.as_bytes().last()];
    part.bytes().all(is_inner) && ends.iter().all(|end| end.is_some_and(is_word)) && !part.contains("..")
}

fn is_tag(tag: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !tag.is_empty() && tag.len() <= 128 && tag.bytes().all(is_inner) && !tag.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_name_leads_to_a_registry_as_it_does_for_docker() {
        let by_digest = format!("docker.io/library/a@sha256:{HEX}");
        for (text, host, path, name) in [
            ("busybox", "docker.io", "library/busybox", "docker.io/library/busybox:latest"),
            ("me/app:1", "docker.io", "me/app", "docker.io/me/app:1"),
            ("index.docker.io/busybox", "docker.io", "library/busybox", "docker.io/library/busybox:latest"),
            ("docker://quay.io/a/b", "quay.io", "a/b", "quay.io/a/b:latest"),
            ("localhost/a", "localhost", "a", "localhost/a:latest"),
            ("localhost:5000/a/b:c", "localhost:5000", "a/b", "localhost:5000/a/b:c"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000", "a", "127.0.0.1:5000/a:latest"),
            (&format!("a:tag@sha256:{HEX}"), "docker.io", "library/a", &by_digest),
        ] {
            let found = Reference::parse(text).unwrap();
            assert_eq!((&*found.host, &*found.path, &*found.name()), (host, path, name), "{text}");
        }
        assert_eq!(server("docker.io"), "registry-1.docker.io");
        assert_eq!(server("quay.io"), "quay.io");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "x".repeat(300);
        for text in [
            "",
            ":x",
            "A",
            "a/../b",
            "a b",
            "a:",
            "a@b",
            "a@sha256:00",
            "h:x/a",
            "h:99999/a",
            "-h.x/a",
            "a//b",
            "a:-x",
            "a/",
            "é",
            "h.x/a?b",
            "a\n",
            "[::1]:5000/a",
            &long,
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_registry_is_named_with_or_without_more() {
        for (text, host) in
            [("quay.io", "quay.io"), ("localhost:5000", "localhost:5000"), ("https://index.docker.io/v1/", "docker.io")]
        {
            assert_eq!(parse_host(text).unwrap(), host);
        }
        assert!(parse_host("").is_err() && parse_host("a b").is_err());
    }
}
