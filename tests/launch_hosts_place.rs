//! Destruction in a throw-away copy, over a root file system that stands in for the host's: a real Debian, made the
//! root of a mount namespace of its own. What a container does to its copy must not reach it, byte for byte.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::mount::{Outcome, finish};
use harness::sandbox::{self, Medium, Sandbox};
use harness::snapshot::{Exactness, Snapshot};

#[allow(dead_code)]
#[path = "real/debian.rs"]
mod debian;
#[path = "support/tools.rs"]
mod tools;

use debian::Debian;

const RLAUNCH: &str = env!("CARGO_BIN_EXE_rlaunch");
const UNPACKING_TAKES: Duration = Duration::from_secs(900);

/// Makes `$1` the root of this mount namespace and runs `rlaunch sh -c $2` there. `unshare` has made the namespace.
const IN_THE_HOSTS_PLACE: &str = r#"
    mount --bind "$1" "$1"
    cd "$1"
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    mount --rbind /dev dev
    mount -t tmpfs -o mode=1777 tmpfs tmp
    pivot_root . .
    umount -l .
    cd /
    exec chroot . /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/bin/rlaunch sh -c "$2"
"#;

/// A root file system in the host's place.
struct Place {
    sandbox: Sandbox,
}

impl Place {
    fn new() -> Option<Place> {
        let sandbox = sandbox::enter_for(Medium::Disk, UNPACKING_TAKES)?;
        let debian = Debian::get()?;
        debian.unpack(&sandbox.path().join("host"));
        let place = Place { sandbox };
        fs::copy(RLAUNCH, place.path().join("usr/bin/rlaunch")).expect("copy rlaunch");
        Some(place)
    }

    fn path(&self) -> PathBuf {
        self.sandbox.path().join("host")
    }

    /// Runs a script in a throw-away copy of it.
    #[track_caller]
    fn rlaunch(&self, script: &str) -> Outcome {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "300", "unshare", "--mount", "--propagation", "private"]);
        command.args(["sh", "-ec", IN_THE_HOSTS_PLACE, "sh"]).arg(self.path()).arg(script);
        let output = command.stdin(Stdio::null()).output().expect("run a container in the host's place");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Outcome { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Everything that it holds. The directories in which every container makes and removes a directory of its own have
    /// a new time afterwards, and what is executed a new time of access, as with any other program.
    fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.path())
            .without(|path| [Path::new("var/tmp"), Path::new("var/lib"), Path::new("run")].contains(&path))
    }
}

/// What is run, and a word that its output must have: it shows that the copy did change.
const DESTRUCTION: &[(&str, &str)] = &[
    ("rm -rf --no-preserve-root / 2> /dev/null; cd /; echo left: *; test -e /etc || test -e /usr || echo gone", "gone"),
    ("rm -rf /etc /home /root /srv /var/lib; ls /; test -e /etc/passwd || echo gone", "gone"),
    ("find /etc /srv /var -xdev -type f -exec truncate -s 0 {} +; test -s /etc/passwd || echo empty", "empty"),
    (
        "find /etc /usr/bin -xdev -type f | while read -r f; do echo garbage >> \"$f\"; done; tail -n 1 /etc/passwd",
        "garbage",
    ),
    (
        "for f in /etc/*.conf; do dd if=/dev/zero of=$f bs=64 count=1 conv=notrunc 2> /dev/null; done; echo written",
        "written",
    ),
    ("chmod -R 000 /etc /srv; stat -c %a /etc/passwd /srv/tree", "0\n0"),
    ("chown -R 1234:5678 /etc /srv /root; stat -c %u:%g /etc/shadow", "1234:5678"),
    ("find /etc /srv /var/lib/dpkg -xdev -print0 | xargs -0 touch -h -d @12345; stat -c %Y /etc/passwd", "12345"),
    ("mv /etc /moved; mv /srv/tree /srv/tree2; mkdir /etc; ls -A /etc | wc -l; ls /moved/passwd", "/moved/passwd"),
    (
        "ln /etc/passwd /name; ln -s /etc/shadow /link; echo through > /name; echo through > /link; cat /etc/passwd",
        "through",
    ),
    ("ln /srv/linked /other && echo changed > /srv/tree/linked; cat /other /srv/linked", "changed\nchanged"),
    ("rm -rf /var/tmp /tmp /run; ls -d /var/tmp; echo tried", "tried"),
    ("for d in /etc /srv; do rm -rf $d; ln -s /nowhere $d; done; readlink /etc", "/nowhere"),
    ("mount -t tmpfs tmpfs /etc && umount / 2> /dev/null; umount -l /proc; ls -A /etc; echo unmounted", "unmounted"),
    (
        "python3 -c 'import os; os.truncate(\"/etc/passwd\", 1); print(os.stat(\"/etc/passwd\").st_size)' || echo no python",
        "",
    ),
    ("dpkg --purge --force-all bsdutils > /dev/null 2>&1; command -v logger || echo purged", "purged"),
];

#[test]
fn whatever_runs_in_a_copy_the_host_stays_byte_for_byte() {
    let Some(place) = Place::new() else { return };
    let before = place.snapshot();
    for (script, word) in DESTRUCTION {
        let outcome = place.rlaunch(script);
        assert!(outcome.stdout.contains(word), "{script}: {outcome:?}");
        assert!(!outcome.stderr.contains("rlaunch:"), "{script}: {outcome:?}");
        assert_eq!(fs::read_dir(place.path().join("var/tmp")).unwrap().count(), 0, "{script}: left in /var/tmp");
        for folder in ["run", "var/lib"] {
            assert!(!place.path().join(folder).join("rlaunch").exists(), "{script}: left in /{folder}");
        }
    }
    before.assert_same(&place.snapshot(), Exactness::Equal, "a throw-away copy has changed the host");
}

#[test]
fn a_copy_looks_like_the_host() {
    let Some(place) = Place::new() else { return };
    // The same question, asked outside and inside. Times of access are left out, and what is fresh in a container.
    let question = "cd / && find bin etc home lib media mnt opt root sbin srv usr var/lib var/cache -xdev \
                    -printf '%p %y %m %U:%G %n %T@ %l %D\\n' | sed 's/ [0-9]*$//' | awk '$2 == \"d\" {$5 = \"-\"} {print}' \
                    | grep -v '^var/lib\\(/rlaunch[^ ]*\\)\\? ' | sort";
    let inside = place.rlaunch(question);
    let outside = finish(Command::new("chroot").arg(place.path()).args(["sh", "-c", question]));
    assert_eq!((inside.status, outside.status), (Some(0), Some(0)), "{inside:?} {outside:?}");
    let lines = |outcome: &Outcome| outcome.stdout.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let differences: Vec<_> = lines(&inside).symmetric_difference(&lines(&outside)).cloned().collect();
    assert!(differences.is_empty(), "{differences:#?}");
    let contents =
        "cd / && find etc usr/bin usr/lib/os-release var/lib/dpkg -xdev -type f | sort | xargs md5sum | md5sum";
    let inside = place.rlaunch(contents);
    assert_eq!(inside.stdout, finish(Command::new("chroot").arg(place.path()).args(["sh", "-c", contents])).stdout);
    assert_eq!(inside.status, Some(0));
}
