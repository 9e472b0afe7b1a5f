//! Block devices: how much in a second, and what share of their time where there is not enough.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::detect::{Controller, Version};
use super::limits::Limits;
use super::memory::parse_size;
use super::setting::{Place, Setting};
use crate::failure::{Doing as _, Failure};

/// A rate for a device, as it is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    device: PathBuf,
    per_second: u64,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes read.
    BytesRead,
    /// Bytes written.
    BytesWritten,
    /// Reads.
    Reads,
    /// Writes.
    Writes,
}

impl Kind {
    fn option(self) -> &'static str {
        match self {
            Kind::BytesRead => "--device-read-bps",
            Kind::BytesWritten => "--device-write-bps",
            Kind::Reads => "--device-read-iops",
            Kind::Writes => "--device-write-iops",
        }
    }

    fn file_of_v1(self) -> &'static str {
        match self {
            Kind::BytesRead => "blkio.throttle.read_bps_device",
            Kind::BytesWritten => "blkio.throttle.write_bps_device",
            Kind::Reads => "blkio.throttle.read_iops_device",
            Kind::Writes => "blkio.throttle.write_iops_device",
        }
    }

    fn key_of_v2(self) -> &'static str {
        match self {
            Kind::BytesRead => "rbps",
            Kind::BytesWritten => "wbps",
            Kind::Reads => "riops",
            Kind::Writes => "wiops",
        }
    }
}

/// A rate for a disk, as the kernel takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRate {
    /// What is counted.
    pub kind: Kind,
    /// The disk's number, as `8:0`.
    pub disk: String,
    /// So much in a second.
    pub per_second: u64,
}

/// Parses `DEVICE:BYTES`.
pub(crate) fn parse_bytes_rate(text: &str) -> Result<Rate, String> {
    parse_rate(text, parse_size)
}

/// Parses `DEVICE:OPERATIONS`.
pub(crate) fn parse_operations_rate(text: &str) -> Result<Rate, String> {
    parse_rate(text, |number| number.parse::<u32>().map(u64::from).map_err(|error| error.to_string()))
}

fn parse_rate(text: &str, number: impl Fn(&str) -> Result<u64, String>) -> Result<Rate, String> {
    let (device, rate) = text
        .rsplit_once(':')
        .filter(|(device, _)| device.starts_with('/'))
        .ok_or("it is not an absolute path and a rate, as /dev/sda:10m")?;
    // The kernel takes 0 for no limit.
    let per_second = number(rate).ok().filter(|rate| *rate > 0).ok_or("the rate is not a number above 0")?;
    Ok(Rate { device: device.into(), per_second })
}

impl Rate {
    /// Finds the disk.
    pub(crate) fn resolve(&self, kind: Kind) -> Result<DiskRate, Failure> {
        let doing = format!("limit {} ({})", self.device.display(), kind.option());
        let metadata = fs::metadata(&self.device).doing(&doing)?;
        if !metadata.file_type().is_block_device() {
            return Err(Failure::because(&doing, "it is not a block device"));
        }
        let number = format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
        let disk = disk_of(Path::new("/sys/dev/block"), &number);
        Ok(DiskRate { kind, disk, per_second: self.per_second })
    }
}

/// The disk of a partition, for only whole disks can be limited; the device itself where it is none.
fn disk_of(devices: &Path, number: &str) -> String {
    let device = devices.join(number);
    if !device.join("partition").exists() {
        return number.to_owned();
    }
    let disk = device.canonicalize().ok().and_then(|path| fs::read_to_string(path.parent()?.join("dev")).ok());
    disk.map_or_else(|| number.to_owned(), |disk| disk.trim().to_owned())
}

pub(crate) fn settings(limits: &Limits, version: Version) -> Vec<Setting> {
    // v1 limits each cgroup on its own, and not what lies below it.
    let places: &[Place] = match version {
        Version::V1 => &[Place::Container, Place::Daemon],
        Version::V2 => &[Place::Common],
    };
    let everywhere = |setting: Setting| places.iter().map(move |place| Setting { place: *place, ..setting.clone() });
    let weight = limits.io_weight.map(|weight| weight_setting(weight, version));
    let rates = limits.disk_rates.iter().map(|rate| {
        let DiskRate { kind, disk, per_second } = rate;
        let file = match version {
            Version::V1 => (kind.file_of_v1(), format!("{disk} {per_second}")),
            Version::V2 => ("io.max", format!("{disk} {}={per_second}", kind.key_of_v2())),
        };
        Setting::new(kind.option(), Controller::Io, Place::Common, vec![file])
    });
    weight.into_iter().chain(rates).flat_map(everywhere).collect()
}

/// Which file there is depends on the scheduler of the kernel's build.
fn weight_setting(weight: u16, version: Version) -> Setting {
    // What reaches from 10 to 1000 on v1 reaches from 1 to 10000 on v2.
    let wide = 1 + (u32::from(weight.max(10)) - 10) * 9999 / 990;
    let files = match version {
        Version::V1 => vec![("blkio.bfq.weight", weight.to_string()), ("blkio.weight", weight.to_string())],
        Version::V2 => vec![("io.bfq.weight", weight.to_string()), ("io.weight", format!("default {wide}"))],
    };
    Setting::new("--blkio-weight", Controller::Io, Place::Common, files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_a_device() {
        for (text, device, per_second) in
            [("/dev/sda:10m", "/dev/sda", 10 << 20), ("/dev/disk/by-id/a:b:1k", "/dev/disk/by-id/a:b", 1024)]
        {
            assert_eq!(parse_bytes_rate(text), Ok(Rate { device: device.into(), per_second }), "{text}");
        }
        assert_eq!(parse_operations_rate("/dev/sda:10"), Ok(Rate { device: "/dev/sda".into(), per_second: 10 }));
        for text in ["", "/dev/sda", "sda:1m", "/dev/sda:", "/dev/sda:0", "/dev/sda:x", "/dev/sda:-1", ":1m"] {
            assert!(parse_bytes_rate(text).is_err(), "{text:?}");
            assert!(parse_operations_rate(text).is_err(), "{text:?}");
        }
        assert!(parse_operations_rate("/dev/sda:1m").is_err());
    }

    #[test]
    fn a_partition_stands_for_its_disk() {
        let place = tempfile::tempdir().unwrap();
        let partition = place.path().join("devices/sda/sda1");
        fs::create_dir_all(&partition).unwrap();
        fs::write(place.path().join("devices/sda/dev"), "8:0\n").unwrap();
        fs::write(partition.join("partition"), "1\n").unwrap();
        let block = place.path().join("block");
        fs::create_dir(&block).unwrap();
        std::os::unix::fs::symlink("../devices/sda/sda1", block.join("8:1")).unwrap();
        std::os::unix::fs::symlink("../devices/sda", block.join("8:0")).unwrap();
        for (number, expected) in [("8:1", "8:0"), ("8:0", "8:0"), ("7:7", "7:7")] {
            assert_eq!(disk_of(&block, number), expected, "{number}");
        }
    }

    #[test]
    fn both_versions_are_written() {
        let rate = |kind, per_second| DiskRate { kind, disk: "8:0".to_owned(), per_second };
        let disk_rates = vec![rate(Kind::BytesWritten, 1 << 20), rate(Kind::Reads, 7)];
        let limits = Limits { io_weight: Some(500), disk_rates, ..Limits::default() };
        let files = |version, place| {
            let settings = settings(&limits, version).into_iter().filter(|s| s.place == place);
            settings.map(|s| s.files.last().cloned().unwrap()).collect::<Vec<_>>()
        };
        let v1 = [
            ("blkio.weight", "500".to_owned()),
            ("blkio.throttle.write_bps_device", "8:0 1048576".to_owned()),
            ("blkio.throttle.read_iops_device", "8:0 7".to_owned()),
        ];
        assert_eq!(files(Version::V1, Place::Container), v1);
        assert_eq!(files(Version::V1, Place::Daemon), v1);
        assert_eq!(
            files(Version::V2, Place::Common),
            [
                ("io.weight", "default 4950".to_owned()),
                ("io.max", "8:0 wbps=1048576".to_owned()),
                ("io.max", "8:0 riops=7".to_owned())
            ]
        );
    }

    #[test]
    fn the_ends_of_the_weights_meet() {
        for (weight, expected) in [(10, "default 1"), (1000, "default 10000"), (100, "default 910")] {
            assert_eq!(weight_setting(weight, Version::V2).files[1].1, expected);
        }
    }
}
