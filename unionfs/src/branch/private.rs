//! Extended attributes that belong to a union file system and not to its callers.
//!
//! They are neither listed, nor read, nor set through a mount, and no copy-up takes them along. What
//! a union inside of a union wants to be such an attribute, overlayfs keeps in an escaped form
//! (`overlay.overlay.X` for `overlay.X`), which is shown without the escape.

/// Those of this file system, and what stands for attributes that an ordinary user was refused.
const OURS: [&[u8]; 4] = [b"trusted.runionfs.", b"user.runionfs.", super::kept::PREFIX, super::kept::PRIVILEGED];
/// Those of overlayfs and of fuse-overlayfs.
const OVERLAY: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs."];
/// What an escape adds to one of overlayfs.
const ESCAPE: &[u8] = b"overlay.";

/// Whether an attribute of a branch is private. Those of overlayfs are where `overlay` says that a
/// branch of its form is there.
pub fn is_private(attribute: &[u8], overlay: bool) -> bool {
    let ours = OURS.iter().any(|prefix| attribute.starts_with(prefix));
    ours || overlay && is_of_overlay(attribute) && shown(attribute).is_none()
}

/// Whether an attribute has a name that overlayfs uses.
pub fn is_of_overlay(attribute: &[u8]) -> bool {
    OVERLAY.iter().any(|prefix| attribute.starts_with(prefix))
}

/// How an escaped attribute of a branch is called by those who look at the union.
pub fn shown(attribute: &[u8]) -> Option<Vec<u8>> {
    OVERLAY[..2].iter().find_map(|prefix| {
        let rest = attribute.strip_prefix(*prefix)?.strip_prefix(ESCAPE)?;
        Some([prefix, rest].concat())
    })
}

/// How an attribute that overlayfs uses is called in a branch, if it is somebody else's.
pub fn escaped(attribute: &[u8]) -> Option<Vec<u8>> {
    OVERLAY[..2].iter().find_map(|prefix| {
        let rest = attribute.strip_prefix(*prefix)?;
        Some([prefix, ESCAPE, rest].concat())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_private_and_what_is_only_escaped() {
        for (attribute, always, with_overlay) in [
            (&b"trusted.runionfs.x"[..], true, true),
            (b"user.runionfs.x", true, true),
            (b"trusted.overlay.opaque", false, true),
            (b"user.overlay.redirect", false, true),
            (b"user.fuseoverlayfs.opaque", false, true),
            (b"trusted.overlay.overlay.opaque", false, false),
            (b"user.overlay.overlay.", false, false),
            (b"user.fuseoverlayfs.overlay.x", false, true),
            (b"user.overlayx", false, false),
            (b"user.containers.override_stat", true, true),
            (b"user.containers.x", false, false),
            (b"user.a", false, false),
            (b"security.capability", false, false),
            (b"security.fuseoverlayfs.override_stat", true, true),
        ] {
            let found = (is_private(attribute, false), is_private(attribute, true));
            assert_eq!(found, (always, with_overlay), "{}", String::from_utf8_lossy(attribute));
        }
    }

    #[test]
    fn an_escape_is_taken_off_as_it_was_put_on() {
        for (seen, kept) in [
            (&b"trusted.overlay.opaque"[..], &b"trusted.overlay.overlay.opaque"[..]),
            (b"user.overlay.overlay.x", b"user.overlay.overlay.overlay.x"),
        ] {
            assert_eq!(escaped(seen).as_deref(), Some(kept));
            assert_eq!(shown(kept).as_deref(), Some(seen));
        }
        assert_eq!(shown(b"trusted.overlay.opaque"), None);
        assert_eq!(escaped(b"user.x"), None);
    }
}
