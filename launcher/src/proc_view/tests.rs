//! Trees of files as v1 and v2 have them, and what a container is told because of them: `tests/golden/proc_view`.

use super::group::Group;
use super::past::Past;
use super::*;
use crate::cgroup::detect::Version;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/proc_view").join(path)
}

/// The cgroup that is named, and those around it.
fn group(version: Version, root: &str, path: &str) -> Group {
    let root = golden(root);
    let levels = root.join(path).ancestors().take_while(|level| level.starts_with(&root)).map(Path::to_owned).collect();
    Group { version, levels }
}

fn v1() -> Groups {
    let group = |controller: &str| Some(group(Version::V1, &format!("v1/{controller}"), "rlaunch/a"));
    Groups {
        memory: group("memory"),
        cpu: group("cpu"),
        cpuset: group("cpuset"),
        accounting: group("cpuacct"),
        io: group("blkio"),
        tasks: group("pids"),
    }
}

fn v2() -> Groups {
    let container = Some(group(Version::V2, "v2", "rlaunch/a/container"));
    Groups {
        memory: container.clone(),
        cpu: container.clone(),
        cpuset: container.clone(),
        accounting: container.clone(),
        io: Some(group(Version::V2, "v2", "rlaunch/a")),
        tasks: container,
    }
}

/// As of a container that was started 100.25 s ago.
fn sources(groups: Groups) -> (Sources, Past) {
    let started = Sources::new(&golden("started"), Groups::default(), Age::Told).unwrap();
    let past = started.past();
    (Sources { machine: golden("machine"), groups, ..started }, past)
}

fn text(groups: &Groups, file: File) -> String {
    let (sources, mut past) = sources(groups.clone());
    String::from_utf8(sources.text(file, &mut past).expect("the machine has it")).unwrap()
}

fn machine(file: File) -> String {
    fs::read_to_string(golden("machine").join(file.path().trim_start_matches('/'))).unwrap()
}

#[test]
fn every_file_is_as_it_was_worked_out_by_hand() {
    for (version, groups) in [("v1", v1()), ("v2", v2())] {
        for file in File::ALL {
            let expected = fs::read_to_string(golden(&format!("expected/{version}/{}", file.name()))).unwrap();
            assert_eq!(text(&groups, file), expected, "{} on {version}", file.path());
        }
    }
}

#[test]
fn where_nothing_is_known_the_machine_is_told() {
    let nothing = Groups::default();
    for file in [File::Meminfo, File::Swaps, File::Cpuinfo, File::Online, File::Loadavg, File::Diskstats] {
        assert_eq!(text(&nothing, file), machine(file), "{file:?}");
    }
    assert_eq!(text(&nothing, File::Uptime), "100.25 401.00\n");
    let stat = text(&nothing, File::Stat);
    assert!(stat.starts_with("cpu  4000 40 4000 400000 400 4 40 0 0 0\ncpu0 1000 10 1000 100000"), "{stat}");
    assert!(stat.contains("\nprocs_running 7\n"), "{stat}");
}

#[test]
fn a_limit_that_is_more_than_there_is_tells_what_there_is() {
    let place = tempfile::tempdir().unwrap();
    for (name, value) in [("memory.max", 1_u64 << 60), ("memory.current", 1 << 20), ("memory.swap.max", 1 << 60)] {
        fs::write(place.path().join(name), format!("{value}\n")).unwrap();
    }
    fs::write(place.path().join("cpu.max"), "9900000 100000\n").unwrap();
    let group = Some(Group { version: Version::V2, levels: vec![place.path().to_owned()] });
    let groups = Groups { memory: group.clone(), cpu: group, ..Groups::default() };
    let meminfo = text(&groups, File::Meminfo);
    for line in ["MemTotal:        8000000 kB", "MemAvailable:    5000000 kB", "SwapTotal:       1000000 kB"] {
        assert!(meminfo.contains(&format!("{line}\n")), "{line}: {meminfo}");
    }
    assert_eq!(text(&groups, File::Online), "0-3\n");
}

#[test]
fn more_use_than_is_allowed_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    for (name, value) in [("memory.max", "4096"), ("memory.current", "8192"), ("memory.swap.max", "0")] {
        fs::write(place.path().join(name), value).unwrap();
    }
    let group = Some(Group { version: Version::V2, levels: vec![place.path().to_owned()] });
    let groups = Groups { memory: group, ..Groups::default() };
    let meminfo = text(&groups, File::Meminfo);
    for line in ["MemTotal:              4 kB", "MemFree:               0 kB", "SwapTotal:             0 kB"] {
        assert!(meminfo.contains(&format!("{line}\n")), "{line}: {meminfo}");
    }
    assert_eq!(text(&groups, File::Swaps).lines().count(), 1);
}

#[test]
fn time_is_enough_for_so_many_cpus() {
    let place = tempfile::tempdir().unwrap();
    for (quota, expected) in [
        ("1000 100000", "0"),
        ("100000 100000", "0"),
        ("100001 100000", "0-1"),
        ("max 100000", "0-3"),
        ("200000 0", "0-3"),
        ("nonsense", "0-3"),
    ] {
        fs::write(place.path().join("cpu.max"), quota).unwrap();
        let group = Some(Group { version: Version::V2, levels: vec![place.path().to_owned()] });
        let groups = Groups { cpu: group, ..Groups::default() };
        assert_eq!(text(&groups, File::Online), format!("{expected}\n"), "{quota}");
    }
}

#[test]
fn start_times_count_from_the_containers_own_clocks() {
    let (sources, mut past) = sources(v2());
    let sources = Sources { age: Age::ByClocks, started: sources.started.whole(), ..sources };
    let stat = String::from_utf8(sources.text(File::Stat, &mut past).unwrap()).unwrap();
    assert!(stat.contains(&format!("\nbtime {}\n", 1_700_000_000 + 1000)), "{stat}");
    let uptime = String::from_utf8(sources.text(File::Uptime, &mut past).unwrap()).unwrap();
    assert!(uptime.starts_with("100.50 "), "{uptime}");
}

#[test]
fn texts_of_no_sense_are_survived() {
    let place = tempfile::tempdir().unwrap();
    for file in File::ALL {
        let path = place.path().join(file.path().trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for text in ["", "\n", "cpu\ncpu1\ncpuX 1\n : \n:\nprocessor\n\nprocessor:\n\n8 0\n", "99999999999999999999999"]
        {
            fs::write(&path, text).unwrap();
            for groups in [v1(), v2(), Groups::default()] {
                let (sources, mut past) = sources(groups);
                let sources = Sources { machine: place.path().to_owned(), ..sources };
                assert!(sources.text(file, &mut past).is_some() || file == File::Swaps, "{file:?} {text:?}");
            }
        }
    }
}
