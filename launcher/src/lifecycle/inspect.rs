//! What is known of a container, as JSON: its record, and what the kernel says of it while it runs.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::resources;
use super::table::{self, runs};
use crate::failure::{Doing as _, Failure};
use crate::mount_table::unescape;
use crate::state::Record;

/// See namespaces(7).
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// Files of cgroups that hold a limit, of v1 and of v2.
const LIMITS: [&str; 21] = [
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "cpu.shares",
    "cpu.max",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.max",
    "memory.swap.max",
    "pids.max",
    "blkio.weight",
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_bps_device",
    "blkio.throttle.read_iops_device",
    "blkio.throttle.write_iops_device",
    "io.weight",
    "io.max",
    "net_cls.classid",
    "devices.list",
];

/// All of it.
pub(super) fn details(record: &Record) -> Result<String, Failure> {
    let doing = "print what is known of the container";
    let mut value = serde_json::to_value(record).map_err(std::io::Error::from).doing(doing)?;
    value["running"] = runs(record)?.into();
    value["state"] = table::status(record)?.into();
    // The environment may hold secrets, and is nobody's business but the command's; a filter is long, and its name says it.
    if let Some(settings) = value["settings"].as_object_mut() {
        settings.retain(|name, _| !matches!(name.as_str(), "environment" | "origin"));
    }
    if let Some(filter) = value.pointer_mut("/settings/confinement/filter")
        && filter.is_object()
    {
        *filter = "Own".into();
    }
    if let Some(init) = record.init.filter(|_| value["running"] == true) {
        let process = Path::new("/proc").join(init.pid.to_string());
        value["namespaces"] = namespaces(&process);
        // One that ends meanwhile has none any more.
        value["mounts"] = fs::read(process.join("mountinfo")).map_or(Value::Null, |table| mounts(&table));
        (value["cgroups"], value["limits"]) =
            resources::cgroups(record).map_or((Value::Null, Value::Null), |cgroups| {
                let paths = cgroups.paths();
                (json!(paths), paths.values().map(|path| limits(path)).fold(json!({}), merge))
            });
    }
    serde_json::to_string_pretty(&value).map(|text| text + "\n").map_err(std::io::Error::from).doing(doing)
}

/// Their inode numbers, as lsns(8) shows them.
fn namespaces(process: &Path) -> Value {
    let number = |kind: &&str| {
        // A kernel may not have all of them.
        let link = fs::read_link(process.join("ns").join(kind)).ok()?;
        link.to_str()?.split_once('[')?.1.strip_suffix(']')?.parse::<u64>().ok()
    };
    let all = NAMESPACES.iter().filter_map(|kind| Some(((*kind).to_owned(), number(kind)?.into())));
    Value::Object(all.collect())
}

/// As the container sees them; proc_pid_mountinfo(5).
fn mounts(table: &[u8]) -> Value {
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let mount = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let end = fields.iter().position(|field| *field == b"-")?;
        Some(json!({
            "target": text(fields.get(4)?),
            "root": text(fields.get(3)?),
            "options": text(fields.get(5)?),
            "type": text(fields.get(end + 1)?),
            "source": text(fields.get(end + 2)?),
        }))
    };
    table.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// What a cgroup says, and the one around it that it shares with the union's daemon.
fn limits(path: &Path) -> Value {
    let around = path.parent().filter(|_| path.ends_with("container"));
    let mut found = Map::new();
    for directory in around.into_iter().chain([path]) {
        for name in LIMITS {
            let Ok(text) = fs::read_to_string(directory.join(name)) else { continue };
            let is_limit = !matches!(text.trim(), "" | "max" | "-1") && !is_default(name, text.trim());
            if is_limit || !found.contains_key(name) {
                found.insert(name.to_owned(), text.trim().into());
            }
        }
    }
    Value::Object(found)
}

/// Whether it is what the kernel writes for no limit at all.
fn is_default(name: &str, text: &str) -> bool {
    text.starts_with("max ") || (name.starts_with("memory.") && text.parse::<u64>().is_ok_and(|bytes| bytes > 1 << 62))
}

fn merge(mut all: Value, one: Value) -> Value {
    if let (Some(all), Value::Object(one)) = (all.as_object_mut(), one) {
        all.extend(one);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_those_of_the_table() {
        let table = b"30 1 0:25 / /a\\040b rw,nosuid shared:1 - tmpfs none rw\nbroken\n31 30 8:1 /x /y ro - ext4 /dev/sda1 rw\n";
        let expected = json!([
            {"target": "/a b", "root": "/", "options": "rw,nosuid", "type": "tmpfs", "source": "none"},
            {"target": "/y", "root": "/x", "options": "ro", "type": "ext4", "source": "/dev/sda1"},
        ]);
        assert_eq!(mounts(table), expected);
    }

    #[test]
    fn a_limit_wins_over_none_of_the_cgroup_in_it() {
        let place = tempfile::tempdir().unwrap();
        let inner = place.path().join("container");
        fs::create_dir(&inner).unwrap();
        for (path, text) in
            [("cpu.max", "20000 100000\n"), ("container/cpu.max", "max 100000\n"), ("container/pids.max", "7\n")]
        {
            fs::write(place.path().join(path), text).unwrap();
        }
        assert_eq!(limits(&inner), json!({"cpu.max": "20000 100000", "pids.max": "7"}));
    }
}
