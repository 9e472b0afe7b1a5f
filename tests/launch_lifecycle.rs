//! Containers after their start: in the background, listed, entered, stopped and forgotten.

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::mount::{Outcome, finish, is_alive, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{PATIENCE, RLAUNCH, Recorded, Running, Tree, printed, wait_until_gone};

/// A tree, and a place for records that no other test sees.
fn tree() -> Option<Recorded> {
    Recorded::new()
}

#[track_caller]
fn rlaunch(arguments: &[&str]) -> Outcome {
    finish(Command::new(RLAUNCH).args(arguments))
}

/// Starts a container in the background.
#[track_caller]
fn background(tree: &Tree, name: &str, script: &str) {
    let outcome = finish(tree.rlaunch().env_remove("TERM").args(["-d", "--name", name, "sh", "-c", script]));
    assert_eq!(printed(outcome), format!("{name}\n"));
}

#[track_caller]
fn record(name: &str) -> serde_json::Value {
    serde_json::from_str(&printed(rlaunch(&["inspect", name]))).expect("JSON")
}

fn pid(value: &serde_json::Value) -> Pid {
    Pid::from_raw(value["pid"].as_i64().expect("a process").try_into().expect("a number of a process"))
}

#[track_caller]
fn refused(outcome: &Outcome, reason: &str) {
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    assert!(outcome.stderr.contains(reason), "{reason}: {}", outcome.stderr);
}

#[test]
fn a_container_in_the_background_is_there_until_it_is_forgotten() {
    let Some(tree) = tree() else { return };
    background(
        &tree,
        "web",
        "echo out; echo err >&2; read line < /dev/null; while ! test -e /go; do sleep 0.05; done; exit 7",
    );
    let list = printed(rlaunch(&["ps"]));
    assert!(list.lines().next().unwrap().starts_with("NAME"), "{list}");
    assert!(list.lines().any(|line| line.starts_with("web ") && line.contains(" runs ")), "{list}");
    assert_eq!(printed(rlaunch(&["list"])), list);
    refused(&rlaunch(&["rm", "web"]), "the container web runs (stop it first, or say --force)");
    fs::write(tree.path("go"), "").unwrap();
    assert_eq!(rlaunch(&["wait", "web"]).status, Some(7));
    assert!(printed(rlaunch(&["ps"])).contains("ended (7)"));
    assert_eq!(printed(rlaunch(&["logs", "web"])), "out\nerr\n");
    assert_eq!(rlaunch(&["wait", "web"]).status, Some(7), "also once it has ended");
    refused(&finish(tree.rlaunch().args(["--name", "web", "true"])), "there is a container web already");
    assert_eq!(printed(rlaunch(&["rm", "web"])), "");
    assert_eq!(printed(rlaunch(&["ps"])).lines().count(), 1);
    tree.assert_empty();
}

#[test]
fn what_cannot_start_is_told_to_the_one_who_waits() {
    let Some(tree) = tree() else { return };
    let outcome = finish(tree.rlaunch().args(["-d", "missing-command"]));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(127), ""), "{outcome:?}");
    assert!(outcome.stderr.starts_with("rlaunch: cannot run 'missing-command' in the container"), "{outcome:?}");
    tree.assert_empty();
    // One that is over before anybody looks has started nevertheless.
    for number in 0..10 {
        let name = format!("short{number}");
        background(&tree, &name, "exit 3");
        assert_eq!(rlaunch(&["wait", &name]).status, Some(3));
    }
}

#[test]
fn stop_asks_first_and_kills_then() {
    let Some(tree) = tree() else { return };
    background(&tree, "kind", "trap 'echo asked; exit 5' TERM; echo ready; while :; do sleep 0.05; done");
    background(&tree, "deaf", "trap '' TERM; echo ready; while :; do sleep 0.05; done");
    for name in ["kind", "deaf"] {
        assert!(poll(PATIENCE, || (rlaunch(&["logs", name]).stdout == "ready\n").then_some(())).is_some());
    }
    assert_eq!(printed(rlaunch(&["stop", "kind"])), "");
    assert_eq!(rlaunch(&["wait", "kind"]).status, Some(5));
    assert!(printed(rlaunch(&["logs", "kind"])).ends_with("asked\n"));
    assert_eq!(printed(rlaunch(&["stop", "--time=0", "deaf"])), "");
    assert_eq!(rlaunch(&["wait", "deaf"]).status, Some(137));
    refused(&rlaunch(&["stop", "deaf"]), "the container deaf does not run");
}

/// Whether a process has nothing to do but to wait for another one.
fn waits_for_a_process(waiter: u32) -> bool {
    let links = fs::read_dir(format!("/proc/{waiter}/fd")).into_iter().flatten().flatten();
    let mut files = links.filter_map(|link| fs::read_link(link.path()).ok());
    let has_one = files.any(|file| file.to_string_lossy().contains("pidfd"));
    has_one && fs::read_to_string(format!("/proc/{waiter}/stat")).is_ok_and(|stat| stat.contains(") S "))
}

/// Its first process is gone, and its launcher has still to clean up.
#[test]
fn stop_waits_for_one_that_ends_by_itself() {
    let Some(tree) = tree() else { return };
    background(&tree, "ends", "exec sleep 1000");
    let (launcher, init) = (pid(&record("ends")["launcher"]), pid(&record("ends")["init"]));
    kill(launcher, Signal::SIGSTOP).unwrap();
    kill(init, Signal::SIGKILL).unwrap();
    let has_ended = || fs::read_to_string(format!("/proc/{init}/stat")).unwrap().contains(") Z ").then_some(());
    assert!(poll(PATIENCE, has_ended).is_some());
    let mut stop = Command::new(RLAUNCH).args(["stop", "ends"]).spawn().unwrap();
    assert!(poll(PATIENCE, || waits_for_a_process(stop.id()).then_some(())).is_some());
    kill(launcher, Signal::SIGCONT).unwrap();
    assert_eq!(poll(PATIENCE, || stop.try_wait().unwrap()).unwrap().code(), Some(0));
    assert_eq!(rlaunch(&["wait", "ends"]).status, Some(137));
}

#[test]
fn signals_reach_the_command() {
    let Some(tree) = tree() else { return };
    background(&tree, "web", "trap 'echo one' USR1; trap 'exit 4' HUP; echo ready; while :; do sleep 0.05; done");
    // The signal reaches the whole process group, so the shell may have something to say of its own.
    let shows = |line: &str| {
        let has_line = || rlaunch(&["logs", "web"]).stdout.lines().any(|text| text == line).then_some(());
        assert!(poll(PATIENCE, has_line).is_some(), "{line}");
    };
    shows("ready");
    assert_eq!(printed(rlaunch(&["kill", "-s", "USR1", "web"])), "");
    shows("one");
    assert_eq!(printed(rlaunch(&["kill", "--signal=1", "web"])), "");
    assert_eq!(rlaunch(&["wait", "web"]).status, Some(4));
    refused(&rlaunch(&["kill", "-s", "NONE", "web"]), "is no signal");
}

#[test]
fn a_log_is_followed_to_its_end() {
    let Some(tree) = tree() else { return };
    background(&tree, "web", "for n in 1 2 3; do echo $n; sleep 0.2; done");
    assert_eq!(printed(rlaunch(&["logs", "--follow", "web"])), "1\n2\n3\n");
}

#[test]
fn a_part_of_a_log_is_printed_and_none_of_it_is_kept_in_memory() {
    let Some(tree) = tree() else { return };
    background(&tree, "web", "seq 1 5; head -c 100000000 /dev/zero | tr '\\0' x | fold -w 1000; echo; echo last");
    assert_eq!(rlaunch(&["wait", "web"]).status, Some(0));
    assert_eq!(printed(rlaunch(&["logs", "--tail", "1", "web"])), "last\n");
    assert_eq!(printed(rlaunch(&["logs", "-n0", "web"])), "");
    assert_eq!(printed(rlaunch(&["logs", "--tail=2", "-f", "web"])), format!("{}\nlast\n", "x".repeat(1000)));
    let script =
        format!("ulimit -v 80000; {RLAUNCH} logs web | wc -c; {RLAUNCH} logs --tail=all web | head -n 5 | tail -n 1");
    assert_eq!(printed(finish(Command::new("sh").args(["-c", &script]))), "100100015\n5\n");
    refused(&rlaunch(&["logs", "--tail=-1", "web"]), "a number is expected");
    assert_eq!(printed(rlaunch(&["rm", "web"])), "");
    // The log of one that is not kept is on a disk as well: whoever fills /run stops the machine.
    let start = ["-d", "--rm", "--name=brief", "sh", "-c", "echo said; exec sleep 1000"];
    printed(finish(tree.rlaunch().args(start)));
    assert!(poll(PATIENCE, || (rlaunch(&["logs", "brief"]).stdout == "said\n").then_some(())).is_some());
    assert_eq!(fs::read_dir("/run/rlaunch/brief").unwrap().count(), 1, "the record alone");
    assert_eq!(printed(rlaunch(&["rm", "--force", "brief"])), "");
    tree.assert_empty();
}

#[test]
fn exec_runs_where_the_container_is_and_brings_nothing_along() {
    let Some(tree) = tree() else { return };
    background(&tree, "box", "cd /etc; sleep 1000");
    let kinds = ["ipc", "mnt", "net", "pid", "uts", "cgroup", "time", "user"];
    let script = kinds.map(|kind| format!("readlink /proc/self/ns/{kind}")).join("; ");
    let inside = printed(rlaunch(&["exec", "box", "sh", "-c", &script]));
    let init = pid(&record("box")["init"]);
    let outside =
        kinds.map(|kind| fs::read_link(format!("/proc/{init}/ns/{kind}")).unwrap().display().to_string() + "\n");
    assert_eq!(inside, outside.concat());
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "exec 9< /etc/passwd; exec \"$@\"",
        "sh",
        RLAUNCH,
        "exec",
        "-e",
        "A=1",
        "--env=GIVEN",
        "-w",
        "/bin",
        "box",
    ]);
    command
        .args(["sh", "-c", "ls /proc/self/fd; env | sort; pwd; exit 6"])
        .env("SECRET", "1")
        .env("GIVEN", "2")
        .env_remove("TERM");
    let outcome = finish(&mut command);
    assert_eq!((outcome.status, &*outcome.stderr), (Some(6), ""), "{outcome:?}");
    let expected = "0\n1\n2\n3\nA=1\nGIVEN=2\nHOME=/root\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPWD=/bin\n";
    assert!(outcome.stdout.starts_with(expected), "{outcome:?}");
    assert!(outcome.stdout.ends_with("/bin\n"), "{outcome:?}");
    let failed = rlaunch(&["exec", "box", "missing"]);
    assert_eq!(failed.status, Some(127), "{failed:?}");
    assert!(printed(rlaunch(&["exec", "-t", "box", "tty"])).starts_with("/dev/pts/0"));
    // None of this has ended the container.
    assert!(is_alive(init));
    let top = printed(rlaunch(&["top", "box"]));
    assert!(top.contains("sleep 1000") && top.lines().count() >= 3, "{top}");
    assert_eq!(printed(rlaunch(&["rm", "--force", "box"])), "");
    assert!(!is_alive(init));
    refused(&rlaunch(&["exec", "box", "true"]), "there is no container box");
}

#[test]
fn exec_may_do_no_more_than_the_containers_first_process() {
    let Some(tree) = tree() else { return };
    let Some(setpriv) = tools::find("setpriv") else { return };
    let inner = tree.rlaunch();
    let mut command = Command::new(setpriv);
    command
        .args(["--bounding-set=-net_raw,-sys_time", "--no-new-privs"])
        .arg(inner.get_program())
        .args(inner.get_args());
    assert_eq!(printed(finish(command.args(["-d", "--name", "box", "sleep", "1000"]))), "box\n");
    let look = |pid: &str| {
        printed(rlaunch(&["exec", "box", "grep", "-E", "^(CapBnd|NoNewPrivs)", &format!("/proc/{pid}/status")]))
    };
    let own = fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(look("self"), look("1"));
    assert!(!own.contains(look("self").lines().next().unwrap()), "the test takes something away");
    assert!(look("self").ends_with("\t1\n"), "{}", look("self"));
    let effective = printed(rlaunch(&["exec", "box", "grep", "CapEff", "/proc/self/status"]));
    assert_eq!(effective.split_whitespace().last(), look("1").split_whitespace().nth(1));
    assert_eq!(printed(rlaunch(&["rm", "-f", "box"])), "");
}

#[test]
fn the_record_says_what_is_so() {
    let Some(tree) = tree() else { return };
    background(&tree, "web", "sleep 1000");
    let record = record("web");
    let init = pid(&record["init"]);
    let link = fs::read_link(format!("/proc/{init}/ns/mnt")).unwrap();
    assert_eq!(format!("mnt:[{}]", record["namespaces"]["mnt"]), link.to_str().unwrap());
    assert_eq!((&record["running"], &record["name"], &record["detached"]), (&true.into(), &"web".into(), &true.into()));
    assert_eq!(record["root"].as_str(), tree.path("").canonicalize().unwrap().to_str());
    assert_eq!((&record["state"], &record["settings"]["environment"]), (&"runs".into(), &serde_json::Value::Null));
    let mounts = record["mounts"].as_array().unwrap();
    let is_there =
        |target: &str, kind: &str| mounts.iter().any(|mount| mount["target"] == target && mount["type"] == kind);
    assert!(is_there("/proc", "proc") && is_there("/dev", "tmpfs"), "{record}");
    for (_, path) in record["cgroups"].as_object().unwrap() {
        let processes = fs::read_to_string(Path::new(path.as_str().unwrap()).join("cgroup.procs")).unwrap();
        assert!(processes.lines().any(|line| line == init.to_string()), "{path}");
    }
    let mode =
        |path: &str| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions()) & 0o7777;
    for folder in ["/run/rlaunch", "/run/rlaunch/web", "/var/lib/rlaunch", "/var/lib/rlaunch/containers/web"] {
        assert_eq!(mode(folder), 0o700, "{folder}");
    }
    for file in ["log", "state.json"] {
        assert_eq!(mode(&format!("/var/lib/rlaunch/containers/web/{file}")), 0o600, "{file}");
    }
    assert_eq!(printed(rlaunch(&["rm", "-f", "web"])), "");
}

#[test]
fn the_record_of_a_union_names_its_branches_and_limits() {
    let Some(tree) = tree() else { return };
    let top = tree.beside("top");
    fs::create_dir(&top).unwrap();
    let branches = format!("{}=rw:{}=ro+wh", top.display(), tree.path("").display());
    let mut command = Command::new(RLAUNCH);
    command.args(["--branches", &branches, "-d", "--name=union", "--pids-limit=77", "--cpus=0.5", "sleep", "1000"]);
    printed(finish(&mut command));
    let record = record("union");
    let listed = record["unions"]["/"].as_array().unwrap();
    assert_eq!(listed.first().unwrap(), &format!("{}=rw", top.display()));
    assert!(listed.last().unwrap().as_str().unwrap().ends_with("=ro+wh"), "{listed:?}");
    let limits = record["limits"].as_object().unwrap();
    assert_eq!(limits["pids.max"], "77", "{limits:?}");
    let half = limits.get("cpu.cfs_quota_us").is_some_and(|quota| quota == "50000");
    assert!(half || limits.get("cpu.max").is_some_and(|quota| quota == "50000 100000"), "{limits:?}");
    assert!(is_alive(pid(&record["daemon"])));
    assert!(
        record["mounts"].as_array().unwrap().iter().any(|mount| mount["target"] == "/" && mount["source"] == "rlaunch")
    );
    assert_eq!(printed(rlaunch(&["rm", "-f", "union"])), "");
}

#[test]
fn what_a_killed_launcher_leaves_goes_with_the_next_start() {
    let Some(tree) = tree() else { return };
    background(&tree, "web", "sleep 1000");
    printed(finish(tree.rlaunch().args(["-d", "--rm", "--name", "brief", "sleep", "1000"])));
    let processes = ["web", "brief"].map(|name| (pid(&record(name)["launcher"]), pid(&record(name)["init"])));
    assert_eq!(rlaunch(&["rm", "--stale"]).status, Some(0));
    for (launcher, init) in processes {
        assert!(is_alive(init), "one that runs is not stale");
        kill(launcher, Signal::SIGKILL).unwrap();
        wait_until_gone(&[launcher, init]);
    }
    assert!(Path::new("/run/rlaunch/brief").exists());
    assert_eq!(finish(tree.rlaunch().args(["--rm", "--name", "brief", "true"])).status, Some(0));
    assert!(!Path::new("/run/rlaunch").exists());
    // One that is to be kept is, and can be started again.
    assert!(printed(rlaunch(&["ps"])).lines().any(|line| line.starts_with("web ") && line.contains(" ended (?) ")));
    refused(&rlaunch(&["wait", "web"]), "nobody was to remember how");
    assert_eq!(printed(rlaunch(&["start", "web"])), "web\n");
    assert_eq!(printed(rlaunch(&["rm", "--force", "web"])), "");
    tree.assert_empty();
}

#[test]
fn a_container_in_the_foreground_is_known_as_long_as_it_runs() {
    let Some(tree) = tree() else { return };
    let running = Running::start(tree.rlaunch().args(["--name", "front", "sh", "-c", "echo ready; exec sleep 1000"]));
    assert!(printed(rlaunch(&["ps"])).contains("front"));
    refused(&rlaunch(&["logs", "front"]), "prints to its caller");
    assert_eq!(printed(rlaunch(&["exec", "front", "uname", "-n"])), "tree\n");
    assert_eq!(printed(rlaunch(&["stop", "front"])), "");
    assert_eq!(running.wait().0, Some(143));
    assert!(printed(rlaunch(&["ps"])).contains("ended (143)"), "who has a name is kept");
    assert_eq!(printed(rlaunch(&["rm", "front"])), "");
    assert_eq!(printed(tree.sh("exit 0")), "");
    assert_eq!(printed(rlaunch(&["ps"])).lines().count(), 1, "who has none is not");
    let outcome = finish(tree.rlaunch().args(["-d", "--rm", "--name", "gone", "true"]));
    assert_eq!(printed(outcome), "gone\n");
    assert!(poll(PATIENCE, || (!Path::new("/run/rlaunch").exists()).then_some(())).is_some());
    tree.assert_empty();
}

#[test]
fn containers_of_one_name_that_do_not_know_of_each_other_share_nothing() {
    let Some(tree) = tree() else { return };
    let container = ["--rm", "--name=twin", "sh", "-c", "echo ready; exec sleep 1000"];
    let one = Running::start(tree.rlaunch().args(container));
    let inner = tree.rlaunch();
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && exec \"$@\"",
        "sh",
    ]);
    let two = Running::start(command.arg(inner.get_program()).args(inner.get_args()).args(container));
    let groups = |running: &Running| {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", running.init())).unwrap();
        text.lines().filter(|line| line.contains("/rlaunch/twin")).map(str::to_owned).collect::<Vec<_>>()
    };
    let (first, second) = (groups(&one), groups(&two));
    assert!(!first.is_empty() && first.len() == second.len(), "{first:?} {second:?}");
    assert!(first.iter().all(|group| !second.contains(group)), "{first:?} {second:?}");
    assert_eq!(printed(rlaunch(&["pause", "twin"])), "");
    two.signal(Signal::SIGTERM);
    assert_eq!(two.wait().0, Some(143), "the other one was paused");
    assert_eq!(printed(rlaunch(&["rm", "--force", "twin"])), "");
}

#[test]
fn words_that_name_no_container_change_nothing_and_say_how_the_program_is_run() {
    let Some(tree) = tree() else { return };
    let victim = tree.beside("x");
    fs::create_dir(&victim).unwrap();
    let victim = victim.to_str().unwrap();
    for words in
        [&["rm", "-rf", victim][..], &["rm", victim], &["rm", "x"], &["kill", "1"], &["rm", "--force", "../.."]]
    {
        let outcome = rlaunch(words);
        refused(&outcome, &format!("rlaunch -- {}", words.join(" ")));
    }
    assert!(Path::new(victim).exists());
    for name in ["../x", "", ".", "a/b", "-x"] {
        let outcome = finish(tree.rlaunch().args(["--name", name, "true"]));
        assert_eq!(outcome.status, Some(125), "{name}: {outcome:?}");
    }
}

/// How often the container has said something.
fn said(name: &str) -> usize {
    printed(rlaunch(&["logs", name])).lines().count()
}

/// Control groups are named as the containers, so no other test may use these names.
#[test]
fn a_paused_container_stands_still_until_it_goes_on_or_ends() {
    let Some(tree) = tree() else { return };
    background(&tree, "still", "while :; do echo tick; sleep 0.02; done");
    assert!(poll(PATIENCE, || (said("still") > 2).then_some(())).is_some());
    refused(&rlaunch(&["resume", "still"]), "the container still is not paused");
    assert_eq!(printed(rlaunch(&["pause", "still"])), "");
    let before = said("still");
    assert!(printed(rlaunch(&["ps"])).lines().any(|line| line.starts_with("still ") && line.contains(" paused ")));
    refused(&rlaunch(&["pause", "still"]), "the container still is paused already");
    refused(
        &rlaunch(&["exec", "still", "true"]),
        "the container still is paused (let it go on with rlaunch resume still)",
    );
    assert_eq!(said("still"), before, "it went on");
    assert_eq!(printed(rlaunch(&["resume", "still"])), "");
    assert!(poll(PATIENCE, || (said("still") > before).then_some(())).is_some());
    // One that is paused can be ended in each way.
    assert_eq!(printed(rlaunch(&["pause", "still"])), "");
    assert_eq!(printed(rlaunch(&["stop", "--time=1", "still"])), "");
    for (name, end) in [("killed", ["kill", "killed"]), ("removed", ["rm", "removed"])] {
        background(&tree, name, "while :; do sleep 0.02; done");
        assert_eq!(printed(rlaunch(&["pause", name])), "");
        let force: &[&str] = if name == "removed" { &["--force"] } else { &[] };
        assert_eq!(printed(rlaunch(&[&end[..], force].concat())), "");
    }
    assert_eq!(rlaunch(&["wait", "killed"]).status, Some(137));
}

#[test]
fn what_a_container_uses_is_printed() {
    let Some(tree) = tree() else { return };
    let started = finish(tree.rlaunch().args([
        "-d",
        "--name",
        "busy",
        "--memory",
        "64m",
        "--pids-limit",
        "20",
        "sh",
        "-c",
        "while :; do :; done",
    ]));
    printed(started);
    background(&tree, "idle", "while :; do sleep 0.1; done");
    let stats: serde_json::Value = serde_json::from_str(&printed(rlaunch(&["stats", "--json"]))).expect("JSON");
    let of = |name: &str| stats.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap().clone();
    let busy = of("busy");
    assert_eq!((busy["memory_limit"].as_u64(), busy["pids_limit"].as_u64()), (Some(64 << 20), Some(20)), "{busy}");
    assert!(busy["memory"].as_u64().is_some_and(|bytes| (1..64 << 20).contains(&bytes)), "{busy}");
    assert!(busy["pids"].as_u64().is_some_and(|pids| (2..20).contains(&pids)), "{busy}");
    let percent = |one: &serde_json::Value| one["cpu_percent"].as_f64().unwrap();
    assert!(percent(&busy) > percent(&of("idle")) && percent(&busy) < 150.0, "{stats}");
    let table = printed(rlaunch(&["stats", "busy"]));
    let words: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((words[0], words[3]), ("busy", "64.0MiB"), "{table}");
    assert_eq!(table.lines().count(), 2, "the other one was not asked for");
    refused(&rlaunch(&["stats", "nobody"]), "there is no container nobody");
}

#[test]
fn limits_of_a_container_change_while_it_runs() {
    let Some(tree) = tree() else { return };
    let start =
        ["-d", "--name", "grows", "--memory", "64m", "--pids-limit", "20", "sh", "-c", "while :; do sleep 0.1; done"];
    printed(finish(tree.rlaunch().args(start)));
    let limits = || {
        let stats: serde_json::Value =
            serde_json::from_str(&printed(rlaunch(&["stats", "--json", "grows"]))).expect("JSON");
        [stats[0]["memory_limit"].clone(), stats[0]["pids_limit"].clone()]
    };
    assert_eq!(limits(), [64 << 20, 20]);
    assert_eq!(printed(rlaunch(&["update", "--memory", "128m", "grows"])), "");
    assert_eq!(limits(), [128 << 20, 20], "what was not named stays");
    assert_eq!(printed(rlaunch(&["update", "--memory", "32m", "--pids-limit", "40", "grows"])), "");
    assert_eq!(limits(), [32 << 20, 40]);
    refused(&rlaunch(&["update", "grows"]), "no limit was given");
    refused(&rlaunch(&["update", "--best-effort-limits", "--memory=1g", "grows"]), "are for the start of a container");
}
