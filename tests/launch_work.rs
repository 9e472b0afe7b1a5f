//! Everyday work in a throw-away copy of the machine, as root and as an ordinary user: packages, commits, builds, scripts.
//! The projects lie on file systems of their own below `/`, one in memory and one in an image, and nothing of what was
//! done is there afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::rootless::{USER, Way, again, give, inside};
use harness::sandbox::{self, Sandbox, run};
use harness::snapshot::{Exactness, Snapshot};
use nix::mount::{MsFlags, mount};

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{RLAUNCH, mounts};

/// What the container sees, but for the projects.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
const PLACE: &str = "rlaunch-work";
const PACKAGE: &str = "rlaunch-test-work";

/// A place with projects: `memory` with a repository in it, `image` with a crate, `tools` with Rust, and a package.
struct Place {
    path: PathBuf,
}

impl Place {
    /// Makes it in a sandbox, for root or for the ordinary user.
    fn make(sandbox: &Sandbox, user: u32) -> Place {
        let place = Place { path: sandbox.path().join(PLACE) };
        fs::create_dir_all(place.path("tools")).expect("make the place");
        drop(sandbox.small_ext4(&format!("{PLACE}/image"), 64, &[]));
        fs::create_dir(place.path("memory")).expect("make the place");
        mount(Some("tmpfs"), &place.path("memory"), Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("tmpfs");
        let rust = rust();
        mount(Some(&rust), &place.path("tools"), None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("show Rust");
        place.fill();
        for name in ["memory", "image"] {
            run(Command::new("chown").args(["-R", &format!("{user}:{user}")]).arg(place.path(name)));
        }
        place
    }

    fn fill(&self) {
        let git = "git init -q -b main . && echo one > file && git add file &&
            git -c user.name=A -c user.email=a@example.org commit -q -m one";
        run(Command::new("sh").args(["-ec", git]).current_dir(self.path("memory")));
        let manifest = "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n";
        let program = "fn main() {\n    println!(\"built {}\", env!(\"CARGO_PKG_NAME\"));\n}\n";
        fs::create_dir(self.path("image/src")).expect("make a crate");
        fs::write(self.path("image/Cargo.toml"), manifest).expect("make a crate");
        fs::write(self.path("image/src/main.rs"), program).expect("make a crate");
        let package = self.path("package");
        for name in ["DEBIAN", "opt/runionfs-work"] {
            fs::create_dir_all(package.join(name)).expect("make a package");
        }
        let fields = "Version: 1\nArchitecture: all\nMaintainer: nobody <a@example.org>\nDescription: a test\n";
        fs::write(package.join("DEBIAN/control"), format!("Package: {PACKAGE}\n{fields}")).expect("make a package");
        fs::write(package.join("opt/runionfs-work/file"), "of the package\n").expect("make a package");
        // Debian's user games and group mail.
        let shared = package.join("opt/runionfs-work/shared");
        fs::write(&shared, "").expect("make a package");
        run(Command::new("sh").args(["-ec", "chown 5:8 \"$1\"; chmod 2755 \"$1\"", "sh"]).arg(&shared));
        let deb = self.path("package.deb");
        run(Command::new("dpkg-deb").arg("--build").arg(&package).arg(deb));
    }

    /// The one that was made for this process.
    fn found() -> Place {
        let (table, name) = (mounts(), format!("/{PLACE}/memory"));
        let mut targets = table.lines().filter_map(|line| line.split(' ').nth(4));
        let target = targets.find(|path| path.ends_with(&name)).expect("the place is mounted");
        Place { path: Path::new(target).parent().expect("the place").to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Works in a copy of the machine: starts in the repository, and writes what is asked for to standard output.
    fn work(&self, path: &str) -> Outcome {
        let script = r#"set -e
            PATH=$1
            export CARGO_HOME="$2/image/cargo" RUSTC="$2/tools/bin/rustc" DEBIAN_FRONTEND=noninteractive
            echo two >> file
            git -c user.name=B -c user.email=b@example.org commit -q -a -m two
            git log --format=%s
            cd "$2/image"
            "$2/tools/bin/cargo" build --quiet --offline
            ./target/debug/small
            python3 -c 'import os, sqlite3, tempfile
with tempfile.TemporaryDirectory(dir=".") as place:
    base = sqlite3.connect(place + "/base")
    base.execute("create table t (x)")
    base.executemany("insert into t values (?)", [(i,) for i in range(100)])
    base.commit()
    os.rename(place + "/base", "base")
print(sqlite3.connect("base").execute("select sum(x) from t").fetchone()[0])'
            apt-get -q -y --no-install-recommends install "$2/package.deb" > apt.log 2>&1 || { cat apt.log; exit 1; }
            cat /opt/runionfs-work/file
            stat -c %u:%g:%a /opt/runionfs-work/shared
            dpkg-query --show --showformat '${db:Status-Status}\n' "$3"
            apt-get -q -y purge "$3" >> apt.log 2>&1
            test ! -e /opt/runionfs-work
            echo "$HOME" > /etc/rlaunch-test-work"#;
        let mut command = Command::new(RLAUNCH);
        command.args(["/bin/sh", "-c", script, "sh", PATH]).arg(&self.path).arg(PACKAGE);
        command.env("PATH", path).env_remove("RUSTC_WRAPPER").env("HOME", self.path("memory"));
        // Beside what is looked at: a user's top lies there.
        command.env("XDG_DATA_HOME", self.path("home"));
        // Those of the test itself are about another crate.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"CARGO")) {
            command.env_remove(name);
        }
        finish(command.current_dir(self.path("memory")))
    }

    fn snapshots(&self) -> [Snapshot; 2] {
        ["memory", "image"].map(|name| Snapshot::take(&self.path(name)))
    }

    /// Does the work, and sees to it that nothing of it reaches the machine.
    fn check(&self, path: &str, owner: &str) {
        let (before, table) = (self.snapshots(), mounts());
        let outcome = self.work(path);
        assert_eq!(outcome.status, Some(0), "{outcome:?}");
        let expected = format!("two\none\nbuilt small\n4950\nof the package\n{owner}:2755\ninstalled\n");
        assert_eq!(outcome.stdout, expected, "{outcome:?}");
        for (before, after) in before.iter().zip(&self.snapshots()) {
            before.assert_same(after, Exactness::Untouched, "work in a copy has reached the machine");
        }
        assert_eq!(mounts(), table);
        for path in ["/opt/runionfs-work", "/etc/rlaunch-test-work"] {
            assert!(!Path::new(path).exists(), "{path}");
        }
        let query = finish(Command::new("dpkg-query").args(["--show", PACKAGE]));
        assert_eq!(query.status, Some(1), "the machine has the package: {query:?}");
    }
}

/// The directory of the Rust that builds this test.
fn rust() -> PathBuf {
    let cargo = PathBuf::from(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()));
    let root = cargo.canonicalize().expect("cargo").ancestors().nth(2).expect("a toolchain").to_owned();
    assert!(root.join("bin/rustc").is_file(), "{} is not a toolchain", root.display());
    root
}

fn has_tools() -> bool {
    ["git", "python3", "apt-get", "dpkg-deb", "cc"].iter().all(|tool| tools::find(tool).is_some())
}

#[test]
fn work_of_root_in_a_copy_stays_there() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !has_tools() {
        return;
    }
    let place = Place::make(&sandbox, 0);
    let packages = || Snapshot::take(Path::new("/var/lib/dpkg"));
    let before = packages();
    place.check(PATH, "5:8");
    before.assert_same(&packages(), Exactness::Equal, "the machine's packages");
}

#[test]
fn work_of_a_user_in_a_copy_stays_there() {
    let test = "work_of_a_user_in_a_copy_stays_there";
    if inside().is_none() {
        let Some(sandbox) = sandbox::enter() else { return };
        if !has_tools() {
            return;
        }
        let place = Place::make(&sandbox, USER);
        give(&place.path("home"));
        assert!(!again(Way::Fusermount, test));
        return;
    }
    let place = Place::found();
    place.check(&std::env::var("PATH").expect("a path"), "5:8");
    // Without helpers for further ids, there is nobody to whom files could be given.
    place.check("/usr/lib", "0:0");
}
