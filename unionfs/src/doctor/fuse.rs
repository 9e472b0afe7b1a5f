//! FUSE: the device, who may mount it, and what the kernel offers for it.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use rustix::io::Errno;

use super::child::{attempt, enter_namespaces, errno_of};
use super::{Row, State};
use crate::backing::Backings;
use crate::fuse::Offer;
use crate::mount::{MountError, MountOptions, attach, open_device};

const GROUP: &str = "unions";

/// What came of a look at the device.
#[derive(Debug)]
pub(super) struct Found {
    device: Result<(), Errno>,
    /// Mounted as root, of this machine or of a container.
    directly: Result<Offer, Errno>,
    /// Mounted as root of a user namespace.
    in_namespace: Result<Offer, Errno>,
    helper: Helper,
}

/// The program that mounts for ordinary users.
#[derive(Debug, PartialEq, Eq)]
enum Helper {
    Missing,
    /// It is there, and does not become root.
    Powerless(PathBuf),
    /// Whatever it becomes, this process and what it starts may not mount.
    Forbidden(PathBuf),
    Works(PathBuf),
}

impl Found {
    pub(super) fn look() -> Found {
        let device = open_device().map(drop).map_err(|error| errno_of(&error));
        Found { directly: offer(false), in_namespace: offer(true), helper: Helper::look(), device }
    }

    /// Whether this user can mount unions.
    pub(super) fn mounts(&self) -> bool {
        self.directly.is_ok() || (self.device.is_ok() && matches!(self.helper, Helper::Works(_)))
    }

    /// Whether root of a user namespace of this user can.
    pub(super) fn mounts_in_namespace(&self) -> Result<(), Errno> {
        self.in_namespace.as_ref().map(drop).map_err(|errno| *errno)
    }

    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = vec![self.device_row(), self.mount_row()];
        match self.directly.as_ref().or(self.in_namespace.as_ref()) {
            Ok(offer) => rows.extend(offer_rows(offer)),
            Err(_) => rows.push(
                Row::new(GROUP, "FUSE protocol", State::Unknown)
                    .gives("the version and the features that are agreed on")
                    .or("make mounting work first, then ask again; of a mounted union, runionfs show tells it"),
            ),
        }
        rows
    }

    /// The program that mounts for ordinary users.
    pub(super) fn helper_row(&self) -> Row {
        self.helper.row()
    }

    fn device_row(&self) -> Row {
        let row = Row::new(GROUP, "/dev/fuse", State::of(self.device.is_ok())).gives("unions at all");
        let Err(errno) = self.device else { return row };
        row.found(words(errno)).or(match errno {
            Errno::NOENT => "load the module (modprobe fuse), or give the container the device (--device /dev/fuse)",
            Errno::NODEV | Errno::NXIO => "load the module: modprobe fuse",
            Errno::ACCESS => "let users open it, as udev does: chmod 666 /dev/fuse",
            Errno::PERM => "let the container use the device (--device /dev/fuse)",
            _ => "find out why it cannot be opened",
        })
    }

    fn mount_row(&self) -> Row {
        let row = Row::new(GROUP, "mount(2) of FUSE", State::of(self.directly.is_ok()))
            .gives("unions for everybody, with devices and set-id programs");
        let Err(errno) = self.directly else {
            // of the machine's root alone the kernel takes devices and set-id programs (mount_namespaces(7))
            return if Backings::are_permitted() { row } else { row.found("for this user namespace, without these") };
        };
        row.found(words(errno)).or(match errno {
            Errno::PERM | Errno::ACCESS => "be root, or rely on fusermount3 or a user namespace",
            Errno::NODEV => "load the module: modprobe fuse",
            _ => "make /dev/fuse work first",
        })
    }
}

/// The first request of a mount that is made for that, in a process with a mount namespace of its own.
fn offer(of_users: bool) -> Result<Offer, Errno> {
    let told = attempt(|| {
        enter_namespaces(of_users)?;
        let device = open_device().map_err(|error| errno_of(&error))?;
        let options = MountOptions::new("runionfs-doctor".into(), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, false);
        // a directory that is surely there: the device lies in it, and is open by now
        attach(device.as_fd(), Path::new("/dev"), &options).map_err(|error| match error {
            MountError::Mount { error, .. } => Errno::from_raw_os_error(error as i32),
            _ => Errno::IO,
        })?;
        Ok(Offer::of(device).map_err(|error| errno_of(&error))?.to_bytes().to_vec())
    })?;
    told.first_chunk().map(Offer::from_bytes).ok_or(Errno::IO)
}

fn offer_rows(offer: &Offer) -> Vec<Row> {
    let version = format!("7.{}", offer.minor);
    let served = Row::new(GROUP, "FUSE protocol", State::of(offer.is_served()));
    let served = served.found(version).gives("unions at all").or("use Linux 3.10 or later");
    let feature = |(name, gives, since): &(&str, &str, &str)| {
        let there = offer.has(name);
        let row = Row::new(GROUP, *name, State::of(there)).gives(gives);
        match *name {
            "passthrough" if there && !Backings::are_permitted() => Row { state: State::No, ..row }
                .found("the kernel would")
                .or("mount as root of the machine, with CAP_SYS_ADMIN"),
            "io_uring" => row.or("nothing: it is not used yet"),
            _ => row.or(format!("use Linux {since} or later")),
        }
    };
    std::iter::once(served).chain(FEATURES.iter().map(feature)).collect()
}

/// What is looked for, by its name in `runionfs show`; what it gives; the kernel that brought it.
const FEATURES: [(&str, &str, &str); 12] = [
    ("readdirplus", "attributes along with listings", "3.9"),
    ("writeback_cache", "small writes are gathered", "3.15"),
    ("no_open", "files of a read-only union are opened without a request", "3.15"),
    ("parallel_dirops", "several lookups in a directory at a time", "4.7"),
    ("posix_acl", "POSIX ACLs are heeded", "4.9"),
    ("max_pages", "requests of 1 MiB, not 128 KiB", "4.20"),
    ("cache_symlinks", "links and listings are kept by the kernel", "4.20"),
    ("no_opendir", "directories are opened without a request", "5.1"),
    ("handle_killpriv_v2", "writes without a question for capabilities each", "5.12"),
    ("passthrough", "files of the top at the speed of their own file system", "6.9"),
    ("idmapped", "mounts of a union that map owners; not used yet", "6.12"),
    ("io_uring", "requests without a change of context; not used yet", "6.14"),
];

impl Helper {
    fn look() -> Helper {
        match super::users::find_program("fusermount3") {
            None => Helper::Missing,
            Some(path) if !super::users::may_come_to_mount() => Helper::Forbidden(path),
            Some(path) if super::users::becomes_root(&path) => Helper::Works(path),
            Some(path) => Helper::Powerless(path),
        }
    }

    fn row(&self) -> Row {
        let state = State::of(matches!(self, Helper::Works(_)));
        let row = Row::new("users", "fusermount3", state).gives("unions of ordinary users outside of a user namespace");
        match self {
            Helper::Missing => row.found("not installed").or("install the package fuse3"),
            Helper::Powerless(path) => row
                .found(format!("{} is not set-user-id root", path.display()))
                .or(format!("chown root {0} && chmod u+s {0}, on a mount without nosuid", path.display())),
            Helper::Forbidden(path) => row
                .found(format!("{} may not mount here", path.display()))
                .or("let the container around this one have CAP_SYS_ADMIN, set-id programs, and /proc"),
            Helper::Works(path) => row.found(path.display().to_string()),
        }
    }
}

pub(super) fn words(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.chars().flat_map(char::to_lowercase).collect()
}
