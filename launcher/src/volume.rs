//! Volumes: directories and files of the host, and file systems in memory, that a container has in its root.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use nix::mount::MsFlags;

use crate::failure::Failure;

/// What the root holds beside its own files.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Files")]
pub struct VolumeOptions {
    /// Show a directory or file of the host: SOURCE:TARGET, and words behind a second colon (ro, nosuid, nodev, noexec, dev;
    /// rprivate, rslave to see what the host mounts in it later, rshared to let the host see what the container mounts, too)
    #[arg(short, long, value_name = "SOURCE:TARGET[:WORDS]", value_parser = volume())]
    pub volume: Vec<Volume>,

    /// Mount an empty file system in memory: TARGET, and words behind a colon (size=, mode=, uid=, gid=, nr_inodes=, ro,
    /// exec, suid, dev)
    #[arg(long, value_name = "TARGET[:WORDS]", value_parser = memory())]
    pub tmpfs: Vec<Tmpfs>,

    /// Make the root read-only; what is mounted in it stays as it is
    #[arg(long)]
    pub read_only: bool,
}

/// A part of the host in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The path on the host.
    pub source: PathBuf,
    /// The path in the container.
    pub target: PathBuf,
    /// Flags that it has in the container beside those that it has on the host.
    pub flags: MsFlags,
    /// Whether devices in it were asked for.
    pub devices: bool,
    /// Who sees what is mounted in it later.
    pub propagation: Propagation,
    /// Whether that is so for what is mounted in it already as well.
    pub recursive: bool,
}

/// Who sees what is mounted in a volume later; see mount_namespaces(7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Whoever mounts it.
    #[default]
    Private,
    /// The container sees what the host mounts.
    Slave,
    /// Container and host see what the other mounts.
    Shared,
}

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    /// The path in the container.
    pub target: PathBuf,
    /// The flags of the mount.
    pub flags: MsFlags,
    /// Its own options.
    pub data: String,
}

fn volume() -> impl clap::builder::TypedValueParser<Value = Volume> {
    use clap::builder::TypedValueParser as _;
    clap::builder::OsStringValueParser::new().try_map(|text| Volume::parse(&text))
}

fn memory() -> impl clap::builder::TypedValueParser<Value = Tmpfs> {
    use clap::builder::TypedValueParser as _;
    clap::builder::OsStringValueParser::new().try_map(|text| Tmpfs::parse(&text))
}

impl VolumeOptions {
    /// Refuses what would be mounted in a volume that the host shares: it would be the host's as well.
    ///
    /// # Errors
    /// Where there is such.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let volumes = self.volume.iter().map(|volume| &volume.target);
        let targets: Vec<&PathBuf> = volumes.chain(self.tmpfs.iter().map(|tmpfs| &tmpfs.target)).collect();
        for shared in self.volume.iter().filter(|volume| volume.propagation == Propagation::Shared) {
            let inner = targets.iter().find(|target| target.starts_with(&shared.target) && **target != &shared.target);
            if let Some(inner) = inner {
                let doing = format!("mount something at {}", inner.display());
                let reason = format!("it would appear on the host, with which {} is shared", shared.target.display());
                return Err(Failure::because(&doing, reason).remedy("use rslave there"));
            }
        }
        Ok(())
    }
}

impl Volume {
    fn parse(text: &OsStr) -> Result<Volume, String> {
        let mut parts = text.as_bytes().split(|byte| *byte == b':');
        let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
            return Err("SOURCE:TARGET is expected".into());
        };
        let words = parts.next().unwrap_or_default();
        if parts.next().is_some() {
            return Err("there are more than two colons; a path with a colon cannot be a volume".into());
        }
        if source.is_empty() {
            return Err("there is no source before the colon".into());
        }
        let source = std::path::absolute(OsStr::from_bytes(source)).map_err(|error| error.to_string())?;
        let mut volume = Volume::new(source, target_of(target)?);
        words.split(|byte| *byte == b',').filter(|word| !word.is_empty()).try_for_each(|word| volume.add(word))?;
        Ok(volume)
    }

    /// A volume without any words.
    #[must_use]
    pub fn new(source: PathBuf, target: PathBuf) -> Volume {
        let (flags, propagation) = (MsFlags::empty(), Propagation::Private);
        Volume { source, target, flags, devices: false, propagation, recursive: true }
    }

    fn add(&mut self, word: &[u8]) -> Result<(), String> {
        let (word, recursive) = match word {
            b"private" | b"slave" | b"shared" => (word, false),
            b"rprivate" | b"rslave" | b"rshared" => (word.get(1..).unwrap_or_default(), true),
            _ => (word, self.recursive),
        };
        self.recursive = recursive;
        match word {
            b"rw" => {}
            b"ro" => self.flags |= MsFlags::MS_RDONLY,
            b"nosuid" => self.flags |= MsFlags::MS_NOSUID,
            b"nodev" => self.flags |= MsFlags::MS_NODEV,
            b"noexec" => self.flags |= MsFlags::MS_NOEXEC,
            b"dev" => self.devices = true,
            b"private" => self.propagation = Propagation::Private,
            b"slave" => self.propagation = Propagation::Slave,
            b"shared" => self.propagation = Propagation::Shared,
            _ => return Err(format!("'{}' is no word for a volume", String::from_utf8_lossy(word))),
        }
        Ok(())
    }
}

impl Tmpfs {
    fn parse(text: &OsStr) -> Result<Tmpfs, String> {
        let mut parts = text.as_bytes().splitn(2, |byte| *byte == b':');
        let target = target_of(parts.next().unwrap_or_default())?;
        let words = String::from_utf8(parts.next().unwrap_or_default().to_vec()).map_err(|error| error.to_string())?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mut tmpfs = Tmpfs { target, flags, data: "mode=1777".into() };
        words.split(',').filter(|word| !word.is_empty()).try_for_each(|word| tmpfs.add(word))?;
        Ok(tmpfs)
    }

    fn add(&mut self, word: &str) -> Result<(), String> {
        const OWN: [&str; 5] = ["size", "mode", "uid", "gid", "nr_inodes"];
        match word {
            "rw" | "nosuid" | "nodev" | "noexec" => {}
            "ro" => self.flags |= MsFlags::MS_RDONLY,
            "exec" => self.flags -= MsFlags::MS_NOEXEC,
            "suid" => self.flags -= MsFlags::MS_NOSUID,
            "dev" => self.flags -= MsFlags::MS_NODEV,
            _ if is_no_limit(word) => {
                return Err(format!("'{word}' would be no limit at all; leave it out for the usual one"));
            }
            _ if word.split_once('=').is_some_and(|(name, value)| OWN.contains(&name) && !value.is_empty()) => {
                self.data.push(',');
                self.data.push_str(word);
            }
            _ => return Err(format!("'{word}' is no word for a file system in memory")),
        }
        Ok(())
    }
}

/// tmpfs(5): of these, zero is not the least but everything. The kernel takes numbers of other bases, too.
fn is_no_limit(word: &str) -> bool {
    let value = word.strip_prefix("size=").or_else(|| word.strip_prefix("nr_inodes="));
    let Some(value) = value else { return false };
    let digits = value.trim_end_matches(|last: char| "kKmMgGtTpPeE%".contains(last));
    digits.starts_with('0') && digits.bytes().all(|byte| matches!(byte, b'0' | b'x' | b'X'))
}

/// A path in the container that something can be mounted on.
pub(crate) fn target_of(path: &[u8]) -> Result<PathBuf, String> {
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    let is_plain = |component| matches!(component, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(is_plain) || path == Path::new("/") {
        return Err(format!("the target '{}' is no absolute path below / without ..", path.display()));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(text: &str) -> Result<Volume, String> {
        Volume::parse(OsStr::new(text))
    }

    #[test]
    fn volumes_have_a_source_a_target_and_words() {
        let plain = Volume::new("/srv".into(), "/data".into());
        assert_eq!(volume("/srv:/data"), Ok(plain.clone()));
        assert_eq!(volume("/srv:/data:rw"), Ok(plain.clone()));
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC;
        assert_eq!(
            volume("/srv:/data:ro,noexec,rslave"),
            Ok(Volume { flags, propagation: Propagation::Slave, ..plain.clone() })
        );
        let shared = Volume { propagation: Propagation::Shared, recursive: false, devices: true, ..plain };
        assert_eq!(volume("/srv:/data:dev,shared"), Ok(shared));
        assert_eq!(volume(".:/data").unwrap().source, std::env::current_dir().unwrap());
    }

    #[test]
    fn nothing_is_mounted_in_what_the_host_shares() {
        let check = |words: &[&str], tmpfs: &[&str]| {
            let volume = words.iter().map(|word| volume(word).unwrap()).collect();
            let tmpfs = tmpfs.iter().map(|word| Tmpfs::parse(OsStr::new(word)).unwrap()).collect();
            VolumeOptions { volume, tmpfs, read_only: false }.check()
        };
        assert!(check(&["/a:/d:rshared", "/b:/data", "/c:/e/d"], &["/f"]).is_ok());
        assert!(check(&["/a:/d:rslave", "/b:/d/b"], &["/d/f"]).is_ok());
        assert!(check(&["/b:/d/b", "/a:/d:shared"], &[]).is_err());
        assert!(check(&["/a:/d:rshared"], &["/d/x"]).unwrap_err().to_string().contains("/d/x"));
    }

    #[test]
    fn what_is_no_volume_is_refused() {
        for text in ["", "/srv", ":/data", "/srv:", "/srv:data", "/srv:/", "/srv:/a/../b", "/srv:/a:ro:x", "/srv:/a:rx"]
        {
            assert!(volume(text).is_err(), "{text}");
        }
    }

    #[test]
    fn file_systems_in_memory_are_inert_unless_asked_otherwise() {
        let inert = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let parse = |text: &str| Tmpfs::parse(OsStr::new(text));
        let plain = Tmpfs { target: "/x".into(), flags: inert, data: "mode=1777".into() };
        assert_eq!(parse("/x"), Ok(plain.clone()));
        let data = "mode=1777,size=1m,mode=700".into();
        assert_eq!(parse("/x:size=1m,mode=700,exec"), Ok(Tmpfs { data, flags: inert - MsFlags::MS_NOEXEC, ..plain }));
        assert!(parse("/x:size=10,mode=0,uid=0,nr_inodes=0x10").is_ok());
        for text in [
            "x",
            "/",
            "/x:size",
            "/x:size=",
            "/x:huge=always",
            "/x:mpol=bind",
            "/x:size=0",
            "/x:size=00%",
            "/x:size=0x0k",
            "/x:nr_inodes=0",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
