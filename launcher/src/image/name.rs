//! What images are called: `NAME[:TAG]`, as it is known from docker.

use std::path::Path;

use super::digest::Digest;
use crate::failure::Failure;

const LONGEST: usize = 255;
const DEFAULT_TAG: &str = "latest";
/// Where the names of others may have come from; what follows names the image as well.
const HOMES: [&str; 3] = ["localhost/", "docker.io/library/", "docker.io/"];

/// A name with its tag.
///
/// # Errors
/// Where the text is none.
pub(crate) fn parse(text: &str) -> Result<String, Failure> {
    let name = with_tag(text);
    is_name(&name).then_some(name).ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        Failure::new(format!("'{}' is no name of an image", shown.escape_debug()))
            .remedy("NAME[:TAG], of letters, digits and . _ - /")
    })
}

/// The names under which an image may be kept that was asked for like this.
pub(crate) fn candidates(text: &str) -> Vec<String> {
    // Whoever says an id in full means what has it, whatever others call theirs.
    if is_id(text) {
        return Vec::new();
    }
    let name = with_tag(text);
    let there = HOMES.iter().map(|home| format!("{home}{name}"));
    let without = HOMES.iter().filter_map(|home| name.strip_prefix(home)).map(str::to_owned);
    [name.clone()].into_iter().chain(there).chain(without).collect()
}

/// The repositories that a name with a digest may mean, and the digest: `NAME[:TAG]@sha256:DIGEST`, of which the tag says
/// nothing.
pub(crate) fn pinned(text: &str) -> Option<(Vec<String>, Digest)> {
    let (name, digest) = text.split_once('@')?;
    let digest = digest.parse().ok()?;
    Some((candidates(name).iter().map(|name| repository(name).to_owned()).collect(), digest))
}

/// A name without its tag or digest.
pub(crate) fn repository(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// What the name `found` in a layout or archive at `place` comes to: one that is only a tag is that of the place.
pub(crate) fn found_at(place: &Path, found: &str) -> Option<String> {
    let whole = match found.contains(['/', ':']) {
        true => found.to_owned(),
        false => format!("{}:{found}", of_place(place)?.split(':').next()?),
    };
    let name = with_tag(&whole);
    is_name(&name).then_some(name)
}

/// The name of a file or directory as that of an image.
pub(crate) fn of_place(place: &Path) -> Option<String> {
    let name = place.file_name()?.to_str()?.to_ascii_lowercase();
    let ends = [".tar.gz", ".tar.zst", ".tgz", ".tar"];
    let name = ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    let whole = with_tag(name);
    (is_name(&whole) && !name.contains(':')).then_some(whole)
}

fn with_tag(text: &str) -> String {
    let last = text.rsplit('/').next().unwrap_or(text);
    if last.contains(':') { text.to_owned() } else { format!("{text}:{DEFAULT_TAG}") }
}

/// Whether it is an id: all of it, or with what it is a digest of.
fn is_id(text: &str) -> bool {
    const DIGITS: usize = 64;
    text.starts_with("sha256:") || (text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// See the "Pulling manifests" grammar of the OCI distribution specification; capitals, which some tools write, are taken.
fn is_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let is_part = |part: &str| {
        part.bytes().all(is_inner) && part.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
    };
    let Some((path, tag)) = name.rsplit_once(':') else { return false };
    // A registry may have a port.
    let mut parts = path.split('/');
    let first = parts.next().unwrap_or_default();
    let has_more = path.contains('/');
    let home = match first.split_once(':') {
        Some((home, port)) if has_more && port.bytes().all(|byte| byte.is_ascii_digit()) => home,
        _ => first,
    };
    let is_tag = tag.len() <= 128 && tag.bytes().all(is_inner) && !tag.starts_with(['.', '-']) && !tag.is_empty();
    name.len() <= LONGEST && !is_id(name) && !is_id(path) && is_part(home) && parts.all(is_part) && is_tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_tag_and_leads_nowhere() {
        for (text, name) in [
            ("busybox", "busybox:latest"),
            ("debian:12", "debian:12"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("quay.io/x/y_z:v1.0-rc", "quay.io/x/y_z:v1.0-rc"),
        ] {
            assert_eq!(parse(text).unwrap(), name);
        }
        let (long, id) = ("x".repeat(300), "0a".repeat(32));
        for text in [
            "", ":x", "a:", "../x", "a/../b", "a b", "-x", "a:b:c", "a//b", "a:\n", "a:-x", "ü", &long, "sha256:1", &id,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_short_name_is_found_where_others_have_put_it() {
        assert!(candidates("busybox").contains(&"docker.io/library/busybox:latest".to_owned()));
        assert!(candidates("docker.io/library/busybox").contains(&"busybox:latest".to_owned()));
        for id in ["sha256:0a0a", &"0a".repeat(32)] {
            assert_eq!(candidates(id), [""; 0], "{id} may be called docker.io/library/{id} by anybody");
        }
    }

    #[test]
    fn a_digest_says_which_image_and_a_tag_before_it_nothing() {
        let digest = Digest::of(b"");
        let (repositories, found) = pinned(&format!("debian:12@{digest}")).unwrap();
        assert_eq!(found, digest);
        for repository in ["debian", "docker.io/library/debian"] {
            assert!(repositories.contains(&repository.to_owned()), "{repositories:?}");
        }
        assert_eq!(pinned("debian:12").or(pinned("debian@sha256:1")), None);
        for (name, expected) in [("h:5000/a", "h:5000/a"), ("h:5000/a:1", "h:5000/a"), ("a@sha256:0", "a"), ("a", "a")]
        {
            assert_eq!(repository(name), expected);
        }
    }

    #[test]
    fn a_tag_alone_belongs_to_its_place() {
        let place = Path::new("/srv/Debian.tar.gz");
        assert_eq!(found_at(place, "12"), Some("debian:12".into()));
        assert_eq!(found_at(place, "other:1"), Some("other:1".into()));
        assert_eq!(found_at(Path::new("/srv/with space"), "1"), None);
        assert_eq!(of_place(place), Some("debian:latest".into()));
    }
}
