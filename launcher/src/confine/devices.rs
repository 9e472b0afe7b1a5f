//! Devices of the host in the container's `/dev`: `--device`.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};

use crate::cgroup::devices::{DeviceAccess, DeviceKind, DeviceRule};
use crate::failure::{Doing as _, Failure};

/// `--device`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    source: PathBuf,
    target: PathBuf,
    access: Access,
}

/// What the container may do with a device; the device controller enforces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Read from it.
    pub read: bool,
    /// Write to it.
    pub write: bool,
    /// Make a node for it.
    pub make: bool,
}

/// A device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Where it is on the host.
    pub source: PathBuf,
    /// Where it is in the container, somewhere below `/dev`.
    pub target: PathBuf,
    /// Whether it is a block device; a character device otherwise.
    pub is_block: bool,
    /// Its number.
    pub number: u64,
    /// The permission bits of its node.
    pub mode: u32,
    /// The owner and the group of its node.
    pub owner: (u32, u32),
    /// What the container may do with it.
    pub access: Access,
}

impl HostDevice {
    /// What the device controller is told.
    pub(crate) fn rule(&self) -> DeviceRule {
        let Access { read, write, make } = self.access;
        DeviceRule {
            kind: if self.is_block { DeviceKind::Block } else { DeviceKind::Character },
            major: Some(nix::sys::stat::major(self.number)),
            minor: Some(nix::sys::stat::minor(self.number)),
            access: DeviceAccess { read, write, make },
        }
    }
}

/// Reads `SOURCE[:TARGET][:ACCESS]`, where the access is some of `rwm`.
///
/// # Errors
/// Where it is not of this form.
pub(super) fn parse(text: &str) -> Result<Wanted, String> {
    let words: Vec<&str> = text.split(':').collect();
    let (source, target, access) = match words.as_slice() {
        [source] => (*source, *source, "rwm"),
        [source, access] if !access.starts_with('/') => (*source, *source, *access),
        [source, target] => (*source, *target, "rwm"),
        [source, target, access] => (*source, *target, *access),
        _ => return Err("it must be SOURCE[:TARGET][:ACCESS]".into()),
    };
    let target = PathBuf::from(target);
    let is_plain = target.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !target.starts_with("/dev") || target == Path::new("/dev") || !is_plain {
        return Err("devices can only be shown below /dev of the container".into());
    }
    Ok(Wanted { source: source.into(), target, access: parse_access(access)? })
}

fn parse_access(text: &str) -> Result<Access, String> {
    if text.is_empty() || text.bytes().any(|byte| !b"rwm".contains(&byte)) {
        return Err(format!("'{text}' is no access; it is made of r, w and m"));
    }
    Ok(Access { read: text.contains('r'), write: text.contains('w'), make: text.contains('m') })
}

impl Wanted {
    /// Looks at it on the host.
    ///
    /// # Errors
    /// Where it is not a device.
    pub(crate) fn observe(&self) -> Result<HostDevice, Failure> {
        let doing = format!("give {} to the container", self.source.display());
        let found = fs::metadata(&self.source).doing(&doing)?;
        let is_block = found.file_type().is_block_device();
        if !is_block && !found.file_type().is_char_device() {
            return Err(Failure::because(&doing, "it is not a device").remedy("use -v for files and directories"));
        }
        Ok(HostDevice {
            source: self.source.clone(),
            target: self.target.clone(),
            is_block,
            number: found.rdev(),
            mode: found.mode() & 0o7777,
            owner: (found.uid(), found.gid()),
            access: self.access,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_and_access_may_be_left_out() {
        let all = Access { read: true, write: true, make: true };
        let read = Access { read: true, write: false, make: false };
        for (text, source, target, access) in [
            ("/dev/kvm", "/dev/kvm", "/dev/kvm", all),
            ("/dev/kvm:r", "/dev/kvm", "/dev/kvm", read),
            ("/dev/kvm:/dev/x/y", "/dev/kvm", "/dev/x/y", all),
            ("/dev/kvm:/dev/x:r", "/dev/kvm", "/dev/x", read),
        ] {
            let wanted = Wanted { source: source.into(), target: target.into(), access };
            assert_eq!(parse(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn a_device_stays_below_dev() {
        for text in
            ["/dev/kvm:/etc/x", "/dev/kvm:/dev", "/dev/kvm:/dev/../etc/x", "/dev/kvm:x", "/dev/kvm:/dev/x:q", "a:b:c:d"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
