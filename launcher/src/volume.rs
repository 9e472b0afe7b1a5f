//! Volumes: directories and files of the host, and file systems in memory, that a container has in its root.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use nix::mount::MsFlags;

/// What the root holds beside its own files.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Files")]
pub struct VolumeOptions {
    /// Show a directory or file of the host: SOURCE:TARGET, and words behind a second colon (ro, nosuid, nodev, noexec,
    /// rslave, rprivate)
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
    /// Whether what the host mounts in it later appears in the container.
    pub follows: bool,
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
        let mut volume = Volume { source, target: target_of(target)?, flags: MsFlags::empty(), follows: false };
        words.split(|byte| *byte == b',').filter(|word| !word.is_empty()).try_for_each(|word| volume.add(word))?;
        Ok(volume)
    }

    fn add(&mut self, word: &[u8]) -> Result<(), String> {
        match word {
            b"rw" | b"rprivate" | b"private" => {}
            b"ro" => self.flags |= MsFlags::MS_RDONLY,
            b"nosuid" => self.flags |= MsFlags::MS_NOSUID,
            b"nodev" => self.flags |= MsFlags::MS_NODEV,
            b"noexec" => self.flags |= MsFlags::MS_NOEXEC,
            b"rslave" | b"slave" => self.follows = true,
            b"rshared" | b"shared" => {
                return Err("a mount that a container makes never reaches the host; rslave shows it the host's".into());
            }
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
            _ if word.split_once('=').is_some_and(|(name, value)| OWN.contains(&name) && !value.is_empty()) => {
                self.data.push(',');
                self.data.push_str(word);
            }
            _ => return Err(format!("'{word}' is no word for a file system in memory")),
        }
        Ok(())
    }
}

/// A path in the container that something can be mounted on.
fn target_of(path: &[u8]) -> Result<PathBuf, String> {
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
        let plain = Volume { source: "/srv".into(), target: "/data".into(), flags: MsFlags::empty(), follows: false };
        assert_eq!(volume("/srv:/data"), Ok(plain.clone()));
        assert_eq!(volume("/srv:/data:rw"), Ok(plain.clone()));
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC;
        assert_eq!(volume("/srv:/data:ro,noexec,rslave"), Ok(Volume { flags, follows: true, ..plain }));
        assert_eq!(volume(".:/data").unwrap().source, std::env::current_dir().unwrap());
    }

    #[test]
    fn what_is_no_volume_is_refused() {
        for text in ["", "/srv", ":/data", "/srv:", "/srv:data", "/srv:/", "/srv:/a/../b", "/srv:/a:ro:x", "/srv:/a:rx"]
        {
            assert!(volume(text).is_err(), "{text}");
        }
        assert!(volume("/srv:/a:rshared").unwrap_err().contains("rslave"));
    }

    #[test]
    fn file_systems_in_memory_are_inert_unless_asked_otherwise() {
        let inert = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let parse = |text: &str| Tmpfs::parse(OsStr::new(text));
        let plain = Tmpfs { target: "/x".into(), flags: inert, data: "mode=1777".into() };
        assert_eq!(parse("/x"), Ok(plain.clone()));
        let data = "mode=1777,size=1m,mode=700".into();
        assert_eq!(parse("/x:size=1m,mode=700,exec"), Ok(Tmpfs { data, flags: inert - MsFlags::MS_NOEXEC, ..plain }));
        for text in ["x", "/", "/x:size", "/x:size=", "/x:huge=always", "/x:mpol=bind"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
