//! What Docker's driver for AuFS left on disk: it is mounted as it lies there, with the words that mounted it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::sandbox::{self, Sandbox, run};
use harness::{Errno, ErrnoOf as _};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// Layers of a container, the top first, as in `aufs/layers/ID`.
const LAYERS: [&str; 4] = ["ID", "ID-init", "PARENT", "BASE"];

/// `aufs/diff`, with what AuFS makes at the root of each directory that it writes to.
struct Store {
    sandbox: Sandbox,
}

impl Store {
    fn new() -> Option<Store> {
        let store = Store { sandbox: sandbox::enter()? };
        for layer in LAYERS {
            for dir in [".wh..wh.plnk", ".wh..wh.orph"] {
                fs::create_dir_all(store.diff(layer).join(dir)).unwrap();
            }
            fs::write(store.diff(layer).join(".wh..wh.aufs"), "").unwrap();
        }
        fs::create_dir(store.sandbox.path().join("mnt")).unwrap();
        Some(store)
    }

    fn diff(&self, layer: &str) -> PathBuf {
        self.sandbox.path().join("aufs/diff").join(layer)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.sandbox.path().join("mnt").join(path)
    }

    fn file(&self, layer: &str, path: &str, content: &str) -> &Store {
        let path = self.diff(layer).join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// A whiteout as AuFS has them: one more name of a file at the root of the branch.
    fn whiteout(&self, layer: &str, path: &str) -> &Store {
        fs::hard_link(self.diff(layer).join(".wh..wh.aufs"), self.diff(layer).join(path)).unwrap();
        self
    }

    /// As the driver does it: the container's own directory and that of its first start, then the image.
    fn branches(&self) -> Vec<String> {
        let access = |layer: &str| if layer == "ID" { "rw" } else { "ro+wh" };
        LAYERS.iter().map(|layer| format!("{}={}", self.diff(layer).display(), access(layer))).collect()
    }

    fn mount(&self) -> Outcome {
        let options = format!("br:{},dio,xino=/dev/shm/aufs.xino,dirperm1", self.branches().join(":"));
        finish(Command::new(BIN).args(["none", self.at("").to_str().unwrap(), "-o", &options]))
    }

    fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.at(path)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }
}

#[test]
fn a_container_of_docker_is_mounted_as_it_lies_on_disk() {
    let Some(store) = Store::new() else { return };
    store.file("BASE", "etc/passwd", "root").file("BASE", "etc/gone", "").file("BASE", "dir/below", "");
    store.file("BASE", "usr/old", "").file("PARENT", "etc/hosts", "image").file("PARENT", "usr/new", "");
    store.file("ID-init", "etc/hosts", "").file("ID", "etc/passwd", "root user").file("ID", "dir/above", "above");
    store.whiteout("PARENT", "usr/.wh.old").whiteout("ID", "etc/.wh.gone").whiteout("ID", "dir/.wh..wh..opq");
    let outcome = store.mount();
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    assert_eq!(store.names(""), ["dir", "etc", "usr"]);
    assert_eq!(store.names("etc"), ["hosts", "passwd"]);
    assert_eq!((store.names("dir"), store.names("usr")), (vec!["above".into()], vec!["new".into()]));
    assert_eq!((store.read("etc/passwd"), store.read("etc/hosts")), ("root user".into(), String::new()));
    for name in [".wh..wh.plnk", ".wh..wh.orph", ".wh..wh.aufs", "etc/.wh.gone"] {
        assert_eq!(fs::metadata(store.at(name)).errno(), Errno::EPERM, "{name}");
    }
    // as /sys/fs/aufs/si_*/br* told it
    let shown = finish(Command::new(BIN).args(["show", store.at("").to_str().unwrap()]));
    let told: Vec<&str> = shown.stdout.lines().take_while(|line| line.starts_with("br")).collect();
    let expected: Vec<String> = (0..).zip(store.branches()).map(|(at, branch)| format!("br{at} {branch}")).collect();
    assert_eq!(told, expected);
    // what AuFS made is left as it was, whatever is done now
    let links = fs::metadata(store.diff("ID").join(".wh..wh.aufs")).unwrap().nlink();
    fs::write(store.at("etc/gone"), "back").unwrap();
    fs::remove_file(store.at("usr/new")).unwrap();
    fs::remove_dir_all(store.at("dir")).unwrap();
    run(Command::new(BIN).args(["umount", store.at("").to_str().unwrap()]));
    assert_eq!(fs::metadata(store.diff("ID").join(".wh..wh.aufs")).unwrap().nlink(), links - 2);
    assert!(store.diff("ID").join("usr/.wh.new").exists() && store.diff("ID").join(".wh.dir").exists());
    let outcome = store.mount();
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    assert_eq!(
        (store.names(""), store.names("etc")),
        (vec!["etc".into(), "usr".into()], vec!["gone".into(), "hosts".into(), "passwd".into()])
    );
}

#[test]
fn hard_links_that_only_aufs_joins_are_told_of() {
    let Some(store) = Store::new() else { return };
    store.file("BASE", "a", "old").file("ID", "a", "new");
    fs::hard_link(store.diff("BASE").join("a"), store.diff("BASE").join("b")).unwrap();
    fs::hard_link(store.diff("ID").join("a"), store.diff("ID").join(".wh..wh.plnk/4711.815")).unwrap();
    fs::write(store.diff("ID").join(".wh..wh.orph/12"), "").unwrap();
    let outcome = store.mount();
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(0), 1), "{}", outcome.stderr);
    let warning = &outcome.stderr;
    assert!(warning.contains(".wh..wh.plnk: it holds a hard link of AuFS") && warning.contains("auplink"), "{warning}");
    assert_eq!(
        (store.read("a"), store.read("b"), store.names("")),
        ("new".into(), "old".into(), vec!["a".into(), "b".into()])
    );
}
