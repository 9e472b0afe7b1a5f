//! Addresses that a server names: where to go on.

/// The scheme and the machine of an address.
pub(super) fn origin(address: &str) -> Option<&str> {
    let scheme = ["https://", "http://"].into_iter().find(|scheme| address.starts_with(scheme))?;
    let rest = address.get(scheme.len()..)?;
    let length = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    address.get(..scheme.len() + length).filter(|_| length > 0)
}

/// Whether an address is of this scheme and machine, so that what is secret between us can go there.
pub(super) fn is_of(address: &str, other: &str) -> bool {
    origin(address) == Some(other)
}

/// What a `Location` comes to that was named by the answer of an address; RFC 3986, 5.2. Nothing where it is none.
pub(super) fn resolve(base: &str, location: &str) -> Option<String> {
    let location = location.split('#').next().filter(|text| !text.is_empty())?;
    if location.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') {
        return None;
    }
    let home = origin(base)?;
    let whole = if origin(location).is_some() {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", home.split("://").next()?)
    } else if location.starts_with('/') {
        format!("{home}{location}")
    } else if location.contains("://") {
        return None;
    } else {
        let path = base.split('?').next()?;
        let folder = path.get(..=path.rfind('/')?).filter(|folder| folder.len() > home.len())?;
        format!("{folder}{location}")
    };
    origin(&whole).is_some().then_some(whole)
}

/// Adds something to the query of an address.
pub(super) fn with_query(address: &str, key: &str, value: &str) -> String {
    let joint = if address.contains('?') { '&' } else { '?' };
    format!("{address}{joint}{key}={}", encode(value))
}

/// What stands for itself nowhere in an address.
pub(super) fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_resolved_as_it_is_for_others() {
        let base = "https://h:5000/v2/a/blobs/uploads/?x=/y";
        for (location, expected) in [
            ("/v2/b?c=d", Some("https://h:5000/v2/b?c=d")),
            ("https://o/x#y", Some("https://o/x")),
            ("http://o/x", Some("http://o/x")),
            ("//o/x", Some("https://o/x")),
            ("id", Some("https://h:5000/v2/a/blobs/uploads/id")),
            ("ftp://o/x", None),
            ("file:///etc/passwd", None),
            ("/a b", None),
            ("/a\r\nX: y", None),
            ("", None),
            ("https:///x", None),
        ] {
            assert_eq!(resolve(base, location).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn a_secret_goes_to_the_same_machine_only() {
        for (address, is_same) in [
            ("https://h:5000/x", true),
            ("https://h:5000?x", true),
            ("https://h:5000", true),
            ("http://h:5000/x", false),
            ("https://h/x", false),
            ("https://h:5000@evil/x", false),
            ("https://h:50001/x", false),
        ] {
            assert_eq!(is_of(address, "https://h:5000"), is_same, "{address}");
        }
    }

    #[test]
    fn a_query_grows() {
        assert_eq!(with_query("http://h/x", "a", "b:c/d"), "http://h/x?a=b%3Ac%2Fd");
        assert_eq!(with_query("http://h/x?y=z", "a", "b"), "http://h/x?y=z&a=b");
    }
}
