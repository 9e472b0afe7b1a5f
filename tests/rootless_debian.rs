//! An ordinary user without further ids installs packages in a Debian that lies below.

#[path = "real/debian.rs"]
mod debian;
#[path = "support/tools.rs"]
mod tools;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use debian::Debian;
use harness::rootless::{self, Way, give};
use harness::sandbox::{self, Medium, Sandbox, run};
use harness::snapshot::{Exactness, Snapshot};

const BINARY: &str = env!("CARGO_BIN_EXE_runionfs");
const LIMIT: Duration = Duration::from_secs(900);

/// What the user does, as root of a namespace that knows nobody else. The directories of packages under way are closed
/// to all but the Debian's own users, so apt gets others.
const INSTALL: &str = r#"
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
"$B" mount "$PWD/0=rw:$PWD/1=ro+wh" mnt
mount --rbind /proc mnt/proc
for device in null zero random urandom; do mount --bind /dev/$device mnt/dev/$device; done
echo 'APT::Sandbox::User "root";' >mnt/etc/apt/apt.conf.d/99rootless
mkdir -p mnt/var/tmp/cache/archives/partial
cp -r packages mnt/packages
chroot mnt sh -euc '
    apt-get -q -y -o Dir::Cache=/var/tmp/cache --no-install-recommends install /packages/*.deb
    hello
    dpkg-query -W -f "\${Package} \${Status}\n" hello less tree bc vim-tiny
    dpkg --audit
    apt-get -q -y -o Dir::Cache=/var/tmp/cache remove tree
    rm -r /packages /var/tmp/cache
    ! command -v tree
'
for device in null zero random urandom; do umount mnt/dev/$device; done
umount -l mnt/proc
"$B" umount mnt
"#;

/// Whether everything is as it was installed, and what there is, from a new mount.
const LOOK_AGAIN: &str = r#"
set -eu
"$B" mount "$PWD/0=rw:$PWD/1=ro+wh" mnt
chroot mnt dpkg --verify hello less bc vim-tiny vim-common
test "$(chroot mnt hello)" = 'Hello, world!'
chroot mnt dpkg-query -W -f '${Package} ${Status}\n' hello less bc vim-tiny
find mnt -xdev \( -path mnt/proc -o ! -readable \) -prune -o -printf '%P %y %m %U:%G %s %T@ %i %l\n' 2>&1 | sort >"$1"
"$B" umount mnt
"#;

fn as_user(sandbox: &Sandbox, script: &str, argument: &str) -> String {
    let mut command = Command::new("timeout");
    command.arg("300").arg(Way::OneId.command().get_program()).args(Way::OneId.command().get_args());
    command.args(["sh", "-c", script, "sh", argument]).current_dir(sandbox.path());
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("B", BINARY);
    let output = command.env("XDG_RUNTIME_DIR", sandbox.path().join("home")).output().expect("run as the user");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{script}\n{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The packages that the user installs, with what they need.
fn packages(debian: &Debian, sandbox: &Sandbox) -> PathBuf {
    let all = sandbox.path().join("all");
    debian.packages(&all);
    let chosen = sandbox.path().join("packages");
    give(&chosen);
    run(Command::new("sh").args(["-ec", "cp \"$1\"/install/*.deb \"$2\"", "sh"]).arg(&all).arg(&chosen));
    chosen
}

#[test]
fn an_ordinary_user_installs_packages_in_a_debian_below() {
    let Some(debian) = Debian::get() else { return };
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, LIMIT) else { return };
    if !rootless::ordinary_daemons(&sandbox) {
        return;
    }
    let at = |name: &str| sandbox.path().join(name);
    debian.unpack(&at("1"));
    packages(&debian, &sandbox);
    for name in ["0", "mnt", "home"] {
        give(&at(name));
    }
    let before = Snapshot::take(&at("1"));
    let said = as_user(&sandbox, INSTALL, "");
    assert!(said.contains("Hello, world!"), "{said}");
    for package in ["hello", "less", "tree", "bc", "vim-tiny"] {
        assert!(said.contains(&format!("{package} install ok installed")), "{package}: {said}");
    }
    before.assert_same(&Snapshot::take(&at("1")), Exactness::EqualButTimes, "the Debian below has changed");
    let lists = ["first", "second"].map(|name| at("home").join(name));
    for list in &lists {
        let said = as_user(&sandbox, LOOK_AGAIN, list.to_str().expect("text"));
        assert_eq!(said.matches("install ok installed").count(), 4, "{said}");
    }
    let [first, second] = lists.map(|list| String::from_utf8_lossy(&fs::read(list).expect("read a list")).into_owned());
    assert!(first.lines().count() > 5_000 && first.contains("usr/bin/hello f 755 0:0"), "{}", first.lines().count());
    assert_eq!(first, second, "another mount shows another tree");
    assert_owner(&at("0"));
}

/// All that was written is the user's.
fn assert_owner(top: &Path) {
    let tree = Snapshot::take(top);
    let others: Vec<_> = tree.entries.iter().filter(|(_, entry)| entry.uid != rootless::USER).collect();
    assert!(others.is_empty() && fs::metadata(top).expect("stat").uid() == rootless::USER, "{others:?}");
    assert!(
        tree.entries.contains_key(Path::new("usr/bin/hello")) && !tree.entries.contains_key(Path::new("usr/bin/tree"))
    );
}
