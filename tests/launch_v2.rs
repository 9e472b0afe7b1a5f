//! Containers on a machine whose control groups are of v2 alone, as most machines are today: one that qemu boots.
//!
//! The tests of limits and of the life of containers run in it as they run here, and those of [`delegated`] and [`root`],
//! which want such a machine. Its root is that of an initramfs, so none of them has pivot_root(2).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[path = "support/cgroups.rs"]
mod cgroups;
#[path = "v2/delegated.rs"]
mod delegated;
#[path = "support/launch.rs"]
mod launch;
#[path = "v2/root.rs"]
mod root;
#[path = "support/tools.rs"]
mod tools;
#[path = "support/v2.rs"]
mod v2;
#[path = "support/vm.rs"]
mod vm;

use vm::{Machine, Report};

/// Far more than it takes, for machines that have other things to do.
const LIMIT: Duration = Duration::from_secs(420);

/// What tests use besides busybox.
const TOOLS: [&str; 8] = ["fusermount3", "mount", "newgidmap", "newuidmap", "setpriv", "strace", "umount", "unshare"];

/// Tests that run in the machine.
struct Suite {
    name: &'static str,
    program: PathBuf,
    /// Which ones, and how.
    arguments: &'static [&'static str],
}

impl Suite {
    /// The names of its tests.
    fn list(&self) -> Vec<String> {
        let output = Command::new(&self.program).args(self.arguments).args(["--list", "--format=terse"]).output();
        let output = String::from_utf8(output.expect("run a test program").stdout).expect("text");
        let names: Vec<_> = output.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
        assert!(!names.is_empty(), "{} has no tests {:?}", self.name, self.arguments);
        names
    }

    fn script(&self) -> String {
        format!("echo '{}'\n{} {}\n", self.heading(), self.program.display(), self.arguments.join(" "))
    }

    fn heading(&self) -> String {
        format!("==> {}", self.name)
    }

    /// Says how each of its tests ended in the machine; those that did not end well.
    fn failures(&self, report: &Report) -> Vec<String> {
        let output = report.output.split_once(&self.heading()).unwrap_or_default().1;
        let output = output.split_once("\n==> ").map_or(output, |(own, _)| own);
        let is_well = |name: &str| output.contains(&format!("test {name} ... ok\n"));
        let tell = |name: &String| {
            let end = if is_well(name) { "ok" } else { "FAILED" };
            // Past the capture of the test runner; nothing is left to tell it to when stderr is closed.
            drop(writeln!(std::io::stderr(), "on v2 alone: {}::{name} ... {end}", self.name));
        };
        let names = self.list();
        names.iter().for_each(tell);
        names.into_iter().filter(|name| !is_well(name)).map(|name| format!("{}::{name}", self.name)).collect()
    }
}

/// The test programs of the launcher, as cargo has built them for this run, or builds them now.
fn programs(names: &[&str]) -> BTreeMap<String, PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--no-run", "--offline", "--locked", "--message-format=json", "--lib"]);
    // Which features dependencies have is a matter of what is built along with it; CI has built everything.
    let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    command.args(if in_ci { &["--workspace"][..] } else { &["-p", "launcher"] });
    command.args(names.iter().flat_map(|name| ["--test", name])).current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command.output().expect("run cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let program = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, PathBuf::from(message["executable"].as_str()?)))
    };
    String::from_utf8(output.stdout).expect("JSON").lines().filter_map(program).collect()
}

fn suites() -> [Suite; 5] {
    let mut programs = programs(&["launch_limits", "launch_lifecycle", "launch_proc_view"]);
    let mut suite = |name, arguments| {
        let program = programs.remove(name).expect("cargo has built it");
        Suite { name, program, arguments }
    };
    let limits = &["--test-threads=2", "--skip", "v1_alone_serves_as_well", "--skip", "few_hierarchies_of_v1"];
    let life = &["--test-threads=2", "exec_", "paused", "stop_", "uses", "limits", "killed_launcher"];
    // What comes from cgroups; the rest is the same everywhere.
    let view = &["--test-threads=2", "memory_is", "cpus_are", "move_with_use", "change_of_limits", "around_it_counts"];
    let own = &["--test-threads=1", "--ignored"];
    [
        suite("launcher", &["--test-threads=2", "cgroup::"]),
        suite("launch_limits", limits),
        suite("launch_lifecycle", life),
        suite("launch_proc_view", view),
        Suite { name: "launch_v2", program: std::env::current_exe().expect("the path of this test"), arguments: own },
    ]
}

/// A machine with these tests and all that they use; `None` where the test is skipped.
fn machine(suites: &[Suite]) -> Option<Machine> {
    let mut machine = Machine::with_kernel_of("bookworm")?;
    suites.iter().for_each(|suite| machine.add_program(&suite.program));
    machine.add_program(Path::new(env!("CARGO_BIN_EXE_rlaunch")));
    for tool in TOOLS {
        machine.add_tool(tool)?;
    }
    for name in ["etc/fuse.conf", "etc/subgid", "etc/subuid"] {
        machine.add_file(name, "");
    }
    machine.add_disk(256);
    machine.boot_with("cgroup_no_v1=all");
    Some(machine)
}

#[test]
fn containers_on_v2_alone() {
    let suites = suites();
    let Some(machine) = machine(&suites) else { return };
    let tests: String = suites.iter().map(Suite::script).collect();
    let script = format!(
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         export CI=true RUNIONFS_TEST_DIR=/disk TMPDIR=/disk\n{tests}"
    );
    let report = machine.run(&script, LIMIT);
    let failures: Vec<String> = suites.iter().flat_map(|suite| suite.failures(&report)).collect();
    let Report { status, output, console } = &report;
    assert!(status.is_some(), "it did not get to the end:\n{output}\nthe kernel's messages:\n{console}");
    assert!(failures.is_empty(), "{failures:?}\n{output}");
}
