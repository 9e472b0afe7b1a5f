//! `runionfs stats`: what a daemon has counted, for people, as JSON, and as Prometheus scrapes it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use harness::fixture::Branches;
use harness::mount::{Outcome, finish};
use harness::sandbox;
use nix::mount::{MntFlags, umount2};
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

fn stats(words: &[impl AsRef<OsStr>]) -> Outcome {
    finish(Command::new(BIN).arg("stats").args(words))
}

/// As JSON, of one mount.
#[track_caller]
fn told(mountpoint: &OsStr) -> Value {
    let outcome = stats(&[OsStr::new("--json"), mountpoint]);
    assert_eq!((outcome.status, &*outcome.stderr, outcome.stdout.lines().count()), (Some(0), "", 1));
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn operation<'a>(told: &'a Value, name: &str) -> &'a Value {
    let operations = told["operations"].as_array().unwrap();
    operations.iter().find(|operation| operation["name"] == name).unwrap_or(&Value::Null)
}

fn cache<'a>(told: &'a Value, name: &str) -> &'a Value {
    told["caches"].as_array().unwrap().iter().find(|cache| cache["name"] == name).unwrap()
}

#[test]
fn requests_are_counted_with_the_time_they_took() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("1/f", "low").dir("1/d");
    let union = branches.mount();
    let before = told(union.path("").as_os_str());
    for name in ["a", "b", "c"] {
        assert!(!union.path(name).exists());
    }
    assert_eq!(union.read("f"), "low");
    assert!(fs::remove_dir(union.path("f")).is_err(), "the kernel refuses it");
    assert!(fs::File::open(union.path("d")).unwrap().set_len(1).is_err());
    let after = told(union.path("").as_os_str());
    let lookup = operation(&after, "LOOKUP");
    let requests = |told: &Value| operation(told, "LOOKUP")["requests"].as_u64().unwrap_or(0);
    let more = requests(&after) - requests(&before);
    assert_eq!(more, 5, "three that are not there, f and d");
    assert_eq!(number(&lookup["errors"]), 0, "what is not there is remembered, and no error");
    let buckets: u64 = lookup["buckets"].as_array().unwrap().iter().map(number).sum();
    assert_eq!(buckets, number(&lookup["requests"]), "each was answered");
    assert!(number(&lookup["nanoseconds"]) > 0);
    assert!(number(&after["uptime_milliseconds"]) >= number(&before["uptime_milliseconds"]));
    assert_eq!(after["pid"], union.mounted.pid().as_raw());
    assert_eq!(after["mountpoint"], union.mounted.target().to_str().unwrap());
}

#[test]
fn errors_are_counted_by_operation() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("1/d/f", "low");
    let union = branches.mount();
    for _ in 0..3 {
        assert!(fs::remove_dir(union.path("d")).is_err(), "it is not empty");
    }
    let after = told(union.path("").as_os_str());
    let removed = operation(&after, "RMDIR");
    assert_eq!((number(&removed["requests"]), number(&removed["errors"])), (3, 3));
}

#[test]
fn copy_ups_are_counted_with_their_bytes() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    for (name, length) in [("a", 1000), ("b", 70_000), ("c", 5)] {
        branches.file(format!("1/{name}"), vec![b'x'; length]);
    }
    let union = branches.mount();
    let before = told(union.path("").as_os_str());
    assert_eq!(number(&before["copy_ups"]), 0);
    for name in ["a", "b"] {
        fs::set_permissions(union.path(name), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        // it is there already
        fs::set_permissions(union.path(name), std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    }
    // nothing of the content is kept
    union.write("c", "new");
    let after = told(union.path("").as_os_str());
    assert_eq!((number(&after["copy_ups"]), number(&after["copy_up_bytes"])), (3, 71_000));
    assert!(number(&after["copy_up_nanoseconds"]) > 0);
    assert_eq!(number(&after["copy_up_failures"]), 0);
}

#[test]
fn caches_open_files_and_bytes_are_counted() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("1/d/e/f", "0123456789");
    let union = branches.mount_with(&["passthrough=off", "writeback=off"]);
    for name in ["x", "y", "z"] {
        assert!(!union.path("d/e").join(name).exists());
    }
    let open = fs::File::options().read(true).write(true).open(union.path("d/e/f")).unwrap();
    assert_eq!(fs::read(union.path("d/e/f")).unwrap(), b"0123456789");
    std::os::unix::fs::FileExt::write_all_at(&open, b"abc", 0).unwrap();
    let after = told(union.path("").as_os_str());
    assert!(number(&after["open_files"]) >= 1);
    assert!(number(&after["inodes"]) >= 4, "the root, d, e and f");
    assert!(number(&after["read_bytes"]) >= 10);
    assert_eq!(number(&after["written_bytes"]), 3);
    let directories = cache(&after, "directories");
    assert!(
        number(&directories["hits"]) > 0 && number(&directories["misses"]) > 0 && number(&directories["entries"]) > 0
    );
    drop(open);
    assert_eq!(union.list("d/e"), ["f"]);
    assert_eq!(union.list("d/e"), ["f"]);
    let listings = cache(&told(union.path("").as_os_str()), "listings").clone();
    assert!(number(&listings["misses"]) >= 1, "{listings}");
}

#[test]
fn branches_are_told_with_the_room_on_their_file_systems() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let expected = format!("{}=ro", branches.at("1").display());
    let size = nix::sys::statvfs::statvfs(&branches.at("1")).unwrap();
    let union = branches.mount();
    let after = told(union.path("").as_os_str());
    let branch = &after["branches"][1];
    assert_eq!(branch["branch"], expected);
    assert_eq!(number(&branch["space"]["size"]), size.blocks() * size.fragment_size());
    let text = stats(&[union.path("")]);
    assert_eq!((text.status, &*text.stderr), (Some(0), ""));
    let line = text.stdout.lines().find(|line| line.trim_start().starts_with(&format!("br1 {expected}: ")));
    assert!(line.is_some_and(|line| line.ends_with(" available")), "{}", text.stdout);
}

/// A sample of Prometheus's text format.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// Takes a line apart as the format is defined, and panics where it is not that.
fn sample(line: &str) -> Sample {
    let (name, rest) = line.split_once('{').unwrap_or_else(|| panic!("no labels: {line}"));
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    assert!(is_word(name), "{line}");
    let (mut labels, mut rest) = (Vec::new(), rest);
    while !rest.starts_with('}') {
        let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("no value: {line}"));
        assert!(is_word(label), "{line}");
        let (mut value, mut characters) = (String::new(), after.chars());
        loop {
            match characters.next().unwrap_or_else(|| panic!("no end of a label: {line}")) {
                '"' => break,
                '\\' => value.push(match characters.next() {
                    Some('n') => '\n',
                    Some(escaped @ ('\\' | '"')) => escaped,
                    other => panic!("{other:?} is no escape: {line}"),
                }),
                other => value.push(other),
            }
        }
        labels.push((label.to_owned(), value));
        rest = characters.as_str();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    let value = rest.strip_prefix("} ").unwrap().parse().unwrap_or_else(|_| panic!("no number: {line}"));
    Sample { name: name.to_owned(), labels, value }
}

/// All samples of a text, each in the family that was begun last; families with help and type, each only once.
#[track_caller]
fn scrape(text: &str) -> Vec<Sample> {
    assert!(text.ends_with('\n'));
    let (mut samples, mut families, mut seen) = (Vec::new(), HashMap::new(), HashSet::new());
    let mut current = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            current = help.split_once(' ').unwrap().0.to_owned();
            assert!(families.insert(current.clone(), "").is_none(), "{current} is told twice");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(name, current);
            families.insert(current.clone(), if kind == "histogram" { "histogram" } else { kind });
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let sample = sample(line);
            let bare = match families[&current] {
                "histogram" => ["_bucket", "_sum", "_count"].iter().find_map(|end| sample.name.strip_suffix(end)),
                _ => Some(&*sample.name),
            };
            assert_eq!(bare, Some(&*current), "{line}");
            assert!(seen.insert((sample.name.clone(), format!("{:?}", sample.labels))), "told twice: {line}");
            samples.push(sample);
        }
    }
    samples
}

/// Buckets grow, and the last one is the count.
#[track_caller]
fn check_histograms(samples: &[Sample]) {
    let without_bound =
        |sample: &Sample| sample.labels.iter().filter(|(name, _)| name != "le").cloned().collect::<Vec<_>>();
    let counts: Vec<_> = samples.iter().filter(|sample| sample.name.ends_with("_seconds_count")).collect();
    assert!(!counts.is_empty());
    for count in counts {
        let of_it = |sample: &&Sample| sample.name.ends_with("_bucket") && without_bound(sample) == count.labels;
        let buckets: Vec<_> = samples.iter().filter(of_it).collect();
        let bound = |sample: &Sample| {
            let le = &sample.labels.iter().find(|(name, _)| name == "le").unwrap().1;
            if le == "+Inf" { f64::INFINITY } else { le.parse::<f64>().unwrap() }
        };
        assert!(buckets.windows(2).all(|two| bound(two[0]) < bound(two[1]) && two[0].value <= two[1].value));
        let last = buckets.last().unwrap();
        assert_eq!((bound(last), last.value), (f64::INFINITY, count.value), "{count:?}");
    }
}

#[test]
fn prometheus_reads_it_whatever_paths_hold() {
    let Some(sandbox) = sandbox::enter() else { return };
    let mounts: Vec<_> = ["m\"\\\n", "plain", "m\u{ff}"].iter().map(|name| sandbox.path().join(name)).collect();
    let low = sandbox.path().join("low\"\\");
    fs::create_dir(&low).unwrap();
    fs::write(low.join("f"), "f").unwrap();
    for mount in &mounts {
        fs::create_dir(mount).unwrap();
        let branches = format!("{}=ro", low.display().to_string().replace('\\', "\\\\"));
        let outcome = finish(Command::new(BIN).arg("mount").arg(branches).arg(mount));
        assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
        assert!(mount.join("f").exists());
    }
    let outcome = stats(&["--prometheus"]);
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    let samples = scrape(&outcome.stdout);
    check_histograms(&samples);
    for mount in &mounts {
        let label = ("mountpoint".to_owned(), mount.to_str().unwrap().to_owned());
        let named = |name: &str| samples.iter().find(|s| s.name == name && s.labels.contains(&label)).unwrap();
        assert_eq!(named("runionfs_info").value, 1.0);
        assert!(named("runionfs_branch_size_bytes").value > 0.0);
        let spec = ("spec".to_owned(), format!("{}=ro", low.display().to_string().replace('\\', "\\\\")));
        assert!(named("runionfs_branch_free_bytes").labels.contains(&spec));
    }
    // one over another, of which the one that is seen is told
    let above = format!("{}=rr", low.display().to_string().replace('\\', "\\\\"));
    let outcome = finish(Command::new(BIN).arg("mount").arg(&above).arg(&mounts[1]));
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    let samples = scrape(&stats(&["--prometheus"]).stdout);
    let label = ("mountpoint".to_owned(), mounts[1].to_str().unwrap().to_owned());
    let of_plain = |s: &&Sample| s.name == "runionfs_branch_size_bytes" && s.labels.contains(&label);
    let specs: Vec<_> = samples.iter().filter(of_plain).map(|s| &s.labels).collect();
    assert!(specs.len() == 1 && specs[0].contains(&("spec".to_owned(), above)), "{specs:?}");
    umount2(&mounts[1], MntFlags::empty()).unwrap();
    for mount in &mounts {
        umount2(mount, MntFlags::empty()).unwrap();
    }
    let outcome = stats(&["--prometheus"]);
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    assert!(scrape(&outcome.stdout).is_empty(), "nothing is mounted any more");
}

#[test]
fn without_a_mount_point_all_are_told_and_one_that_is_dead_is_named() {
    let Some(first) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let second = first.at("second");
    fs::create_dir(&second).unwrap();
    let low = first.at("1");
    let mut union = first.mount();
    let outcome = finish(Command::new(BIN).arg("mount").arg(format!("{}=ro", low.display())).arg(&second));
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    let all = stats(&["--json"]);
    assert_eq!((all.status, all.stdout.lines().count()), (Some(0), 2), "{all:?}");
    let text = stats(&[] as &[&str]);
    let heads = text.stdout.lines().filter(|line| !line.starts_with(' ')).count();
    assert_eq!((text.status, heads), (Some(0), 2), "{text:?}");
    union.mounted.kill9();
    let all = stats(&["--json"]);
    assert_eq!((all.status, all.stdout.lines().count(), all.stderr.lines().count()), (Some(1), 1, 1), "{all:?}");
    assert!(all.stderr.contains(union.mounted.target().to_str().unwrap()), "{all:?}");
    umount2(&second, MntFlags::empty()).unwrap();
}

#[test]
fn what_is_no_union_is_refused_in_one_line() {
    let Some(sandbox) = sandbox::enter() else { return };
    let odd = sandbox.path().join(OsStr::from_bytes(b"a\n\xff"));
    fs::create_dir(&odd).unwrap();
    for (words, status) in [(vec![odd.as_os_str()], 1), (vec!["--json".as_ref(), "--prometheus".as_ref()], 2)] {
        let outcome = stats(&words);
        assert_eq!(outcome.status, Some(status), "{outcome:?}");
        assert!(outcome.stdout.is_empty());
        assert!(status == 2 || outcome.stderr.lines().count() == 1, "{outcome:?}");
    }
}

#[test]
fn a_daemon_of_another_user_that_means_no_good_does_no_harm() {
    use std::io::{Read as _, Write as _};
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let union = branches.mount();
    let socket = format!("/run/runionfs/0:{}.sock", union.mounted.entry().unwrap().minor);
    fs::remove_file(&socket).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let buckets = vec![u64::MAX; 30];
    let huge = serde_json::json!({
        "version": "\u{1b}[2J", "pid": 1, "mountpoint": "/a\nb", "uptime_milliseconds": u64::MAX,
        "operations": [{ "name": "\u{1b}]0;x\n", "requests": u64::MAX, "errors": u64::MAX, "nanoseconds": u64::MAX, "buckets": buckets }],
        "read_bytes": u64::MAX, "written_bytes": u64::MAX, "copy_ups": u64::MAX, "copy_up_bytes": u64::MAX,
        "copy_up_nanoseconds": u64::MAX, "copy_up_failures": u64::MAX, "open_files": u64::MAX, "inodes": u64::MAX,
        "caches": [{ "name": "\u{7}", "hits": u64::MAX, "misses": u64::MAX, "entries": 1 }],
        "branches": [{ "branch": "\u{1b}c", "space": null, "error": "\u{1b}c" }],
    });
    let answers = [format!("{huge}\n"), format!("{huge}\n"), "no JSON\n".into(), "x".repeat(17 << 20), String::new()];
    let daemon = std::thread::spawn(move || {
        for answer in answers {
            let mut client = listener.accept().unwrap().0;
            assert!(client.read(&mut [0; 64]).unwrap() > 0);
            // whoever has heard enough hangs up
            client.write_all(answer.as_bytes()).unwrap_or_default();
        }
    });
    let target = union.mounted.target().to_str().unwrap().to_owned();
    let text = stats(&[&target]);
    assert_eq!((text.status, &*text.stderr), (Some(0), ""));
    assert!(!text.stdout.contains(['\u{1b}', '\u{7}']), "{}", text.stdout);
    let samples = scrape(&stats(&["--prometheus", &target]).stdout);
    check_histograms(&samples);
    for _ in 0..3 {
        let outcome = stats(&[&target]);
        assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
    }
    daemon.join().unwrap();
    fs::remove_file(&socket).unwrap();
}
