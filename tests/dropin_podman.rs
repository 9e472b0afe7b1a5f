//! podman with this as its `mount_program`: what it imports, builds, commits and exports is what it does with the
//! kernel's overlayfs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::finish;
use harness::rootless::{self, Way};
use harness::sandbox::{self, Sandbox, run};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::Pid;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
const HYBRID: &str = "/sys/fs/cgroup/unified";

/// Limits that may be had without CAP_SYS_RESOURCE.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4096:4096"];

/// The commands of the image; all of them are busybox.
const APPLETS: &[&str] = &["sh", "cat", "chown", "cp", "echo", "id", "ln", "ls", "mkdir", "mkfifo", "mv", "rm", "stat"];

/// Each line is a layer. What a union can get wrong is in them.
const STEPS: &[&str] = &[
    "RUN rm -rf /opt/dir && mkdir /opt/dir && echo new > /opt/dir/new",
    "RUN rm /srv/file && mv /data /moved && echo more >> /etc/group",
    "COPY hello /opt/hello",
    "RUN ln /etc/passwd /etc/linked && chown 33:34 /etc/linked && mkfifo -m 640 /root/fifo && ln -s a /root/link",
    "RUN rm -rf /opt/dir && echo file > /opt/dir && rm /moved/a && rm -rf /empty && mkdir -m 2770 /empty",
];

/// Who mounts for podman.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Driver {
    Kernel,
    Ours,
    /// Ours, with owners and modes kept in an attribute.
    Masked,
    /// fuse-overlayfs as Debian has it.
    Debians,
}

/// podman with a storage of its own.
struct Podman<'a> {
    sandbox: &'a Sandbox,
    name: &'static str,
    parent: String,
}

impl<'a> Podman<'a> {
    fn new(sandbox: &'a Sandbox, name: &'static str, driver: Driver) -> Podman<'a> {
        let store = sandbox.path().join(name);
        for dir in ["graph", "run", "tmp"] {
            fs::create_dir_all(store.join(dir)).unwrap();
        }
        let at = store.display();
        let program = match driver {
            Driver::Debians => PathBuf::from("/usr/bin/fuse-overlayfs"),
            _ => sandbox.path().join("fuse-overlayfs"),
        };
        let mut storage = format!("[storage]\ndriver=\"overlay\"\ngraphroot=\"{at}/graph\"\nrunroot=\"{at}/run\"\n");
        // of ordinary users it says so by another word
        storage += &format!("rootless_storage_path=\"{at}/graph\"\n");
        if driver != Driver::Kernel {
            storage += &format!("[storage.options.overlay]\nmount_program=\"{}\"\n", program.display());
        }
        if driver == Driver::Masked {
            storage += "force_mask=\"shared\"\n";
        }
        fs::write(store.join("storage.conf"), storage).unwrap();
        let engine = format!("[engine]\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"none\"\ntmp_dir=\"{at}/tmp\"\n");
        fs::write(store.join("containers.conf"), engine).unwrap();
        let number = sandbox.path().file_name().unwrap().display();
        let parent = format!("{number}-{name}");
        Podman { sandbox, name, parent }
    }

    fn store(&self) -> PathBuf {
        self.sandbox.path().join(self.name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command
            .args(words)
            .env("CONTAINERS_STORAGE_CONF", self.store().join("storage.conf"))
            .env("CONTAINERS_CONF", self.store().join("containers.conf"))
            .env("TMPDIR", self.store().join("tmp"))
            .env("HOME", self.store())
            .current_dir(self.sandbox.path());
        command
    }

    /// Runs podman; what it says on standard output.
    #[track_caller]
    fn call(&self, words: &[&str]) -> String {
        let outcome = finish(&mut self.command(words));
        assert_eq!(outcome.status, Some(0), "podman {words:?} on {}: {}", self.name, outcome.stderr);
        outcome.stdout.trim().to_owned()
    }

    /// Runs a shell in a container.
    #[track_caller]
    fn shell(&self, options: &[&str], image: &str, script: &str) -> String {
        let group: &[&str] = if rootless::inside().is_none() { &["--cgroup-parent", &self.parent] } else { &[] };
        let fixed = [&["run", "--network", "none"], group].concat();
        self.call(&[&fixed[..], &LIMITS, options, &[image, "sh", "-c", script]].concat())
    }

    #[track_caller]
    fn build(&self, options: &[&str], file: &str) {
        let context = self.sandbox.path().join("context");
        fs::write(context.join("Containerfile"), file).unwrap();
        // it is the container's own group, which must have no others in it
        let group = format!("{}-build", self.parent);
        let isolation: &[&str] = match rootless::inside() {
            None => &["--network", "none", "--cgroup-parent", &group],
            // without a namespace for the network, which takes more than is everywhere
            Some(_) => &["--isolation", "chroot"],
        };
        let fixed = [&["build", "-q"], isolation].concat();
        self.call(&[&fixed[..], &LIMITS, options, &[context.to_str().unwrap()]].concat());
    }

    /// What an image holds after each of its layers.
    fn states(&self, image: &str) -> Vec<State> {
        let dir = self.store().join("saved");
        fs::create_dir(&dir).unwrap();
        let archive = self.store().join("saved.tar");
        self.call(&["save", "-q", "-o", archive.to_str().unwrap(), image]);
        run(Command::new("tar").arg("-C").arg(&dir).arg("-xf").arg(&archive));
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap();
        let layers = manifest[0]["Layers"].as_array().unwrap().iter().map(|layer| dir.join(layer.as_str().unwrap()));
        let mut state = State::new();
        let states = layers.map(|layer| {
            apply(&mut state, &listing(&layer));
            state.clone()
        });
        let states = states.collect();
        fs::remove_dir_all(&dir).unwrap();
        fs::remove_file(&archive).unwrap();
        states
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        for words in [&["rm", "-a", "-f", "-t", "0"][..], &["rmi", "-a", "-f"]] {
            finish(&mut self.command(words));
        }
        if rootless::inside().is_some() {
            end_pause(&self.store().join("tmp"));
            return;
        }
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
        for hierarchy in hierarchies.chain([root.to_owned()]) {
            remove_groups(&hierarchy.join(&self.parent));
            remove_groups(&hierarchy.join(format!("{}-build", self.parent)));
        }
    }
}

/// Ends the process that keeps an ordinary user's namespaces for the next call of podman.
fn end_pause(tmp: &Path) {
    let number = fs::read_to_string(tmp.join("pause.pid")).unwrap();
    kill(Pid::from_raw(number.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
}

/// Removes a control group and those in it, where there is one.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            remove_groups(&entry.path());
        }
    }
    // not there in hierarchies that podman does not use
    fs::remove_dir(group).unwrap_or_default();
}

/// Paths, and what is told of each: type and mode, owner, size or target.
type State = BTreeMap<String, String>;

/// The entries of an archive in their order.
fn listing(archive: &Path) -> Vec<(String, String)> {
    let said = finish(Command::new("tar").args(["--numeric-owner", "--full-time", "-tvf"]).arg(archive));
    assert_eq!(said.status, Some(0), "{}", said.stderr);
    said.stdout.lines().map(entry).collect()
}

/// A line of `tar -tv`: mode, owner, size, date, time, name.
fn entry(line: &str) -> (String, String) {
    let (mut words, mut rest) = (Vec::new(), line);
    for _ in 0..5 {
        let (word, after) = rest.split_once(' ').unwrap();
        (rest, _) = (after.trim_start(), words.push(word));
    }
    let (name, target) = match rest.split_once(" link to ").or_else(|| rest.split_once(" -> ")) {
        Some((name, target)) => (name, target.trim_start_matches("./")),
        None => (rest, ""),
    };
    let name = name.trim_start_matches("./").trim_end_matches('/').to_owned();
    (name, format!("{} {} {} {target}", words[0], words[1], words[2]).trim_end().to_owned())
}

/// Lays a layer on what is there, as the image specification says.
fn apply(state: &mut State, layer: &[(String, String)]) {
    let below = |dir: &str| if dir.is_empty() { String::new() } else { format!("{dir}/") };
    for (path, _) in layer {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name == ".wh..wh..opq" {
            let prefix = below(dir);
            state.retain(|path, _| !path.starts_with(&prefix));
        } else if let Some(hidden) = name.strip_prefix(".wh.") {
            let (gone, prefix) = (format!("{}{hidden}", below(dir)), format!("{}{hidden}/", below(dir)));
            state.retain(|path, _| *path != gone && !path.starts_with(&prefix));
        }
    }
    let is_mark = |path: &str| path.rsplit('/').next().is_some_and(|name| name.starts_with(".wh."));
    for (path, told) in layer.iter().filter(|(path, _)| !is_mark(path)) {
        if !told.starts_with('d') {
            let prefix = below(path);
            state.retain(|path, _| !path.starts_with(&prefix));
        }
        state.insert(path.clone(), told.clone());
    }
    // which of two names of a file comes first is chance
    for (path, told) in layer.iter().filter(|(_, told)| told.starts_with('h')) {
        let target = told.rsplit(' ').next().unwrap();
        let both = format!("{} also {}", state[target].clone(), path.clone().min(target.to_owned()));
        state.insert(path.clone(), both.clone());
        state.insert(target.to_owned(), both);
    }
}

/// Where podman can run: an unmixed cgroup tree, and a /dev/null that may become somebody's.
fn prepare(sandbox: &Sandbox) -> bool {
    for tool in ["podman", "crun", "busybox"] {
        if finish(Command::new("which").arg(tool)).status != Some(0) {
            sandbox::skip(&format!("it needs {tool} (tests/setup)"));
            return false;
        }
    }
    if rootless::inside().is_none() {
        leave_hybrid();
        let null = sandbox.path().join("null");
        mknod(&null, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
        fs::set_permissions(&null, PermissionsExt::from_mode(0o666)).unwrap();
        mount(Some(&null), "/dev/null", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    }
    symlink(BIN, sandbox.path().join("fuse-overlayfs")).unwrap();
    make_root(&sandbox.path().join("root"));
    fs::create_dir(sandbox.path().join("context")).unwrap();
    fs::write(sandbox.path().join("context/hello"), "hello").unwrap();
    true
}

/// crun refuses two kinds of control groups at a time.
fn leave_hybrid() {
    if Path::new(HYBRID).join("cgroup.controllers").exists() {
        umount2(HYBRID, MntFlags::MNT_DETACH).unwrap();
    }
}

/// A root file system of busybox alone, and its archive beside it.
fn make_root(root: &Path) {
    for dir in ["bin", "etc", "opt/dir/sub", "srv", "data/deep", "empty/a", "root", "tmp", "proc", "sys", "dev", "run"]
    {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    run(Command::new("sh").arg("-c").arg("cp \"$(command -v busybox)\" \"$1\"").arg("sh").arg(root.join("bin")));
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    for (file, content) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
        ("opt/dir/a", "a"),
        ("opt/dir/sub/b", "b"),
        ("srv/file", "file"),
        ("data/a", "a"),
        ("data/deep/b", "b"),
    ] {
        fs::write(root.join(file), content).unwrap();
    }
    fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    let mut tar = Command::new("tar");
    match rootless::inside() {
        None => chown(root.join("data/a"), Some(7), Some(8)).unwrap(),
        Some(_) => drop(tar.args(["--owner=root:0", "--group=root:0"])),
    }
    run(tar.arg("-C").arg(root).args(["-c", "-f"]).arg(root.with_extension("tar")).arg("."));
}

/// Imports, and builds an image, of a layer for each step or of one for all.
fn build(podman: &Podman<'_>, layers: &str) {
    podman.call(&["import", "-q", "root.tar", "base"]);
    podman.build(&[layers, "-t", "built"], &format!("FROM localhost/base\n{}\n", STEPS.join("\n")));
}

#[test]
fn each_layer_of_a_build_holds_what_overlayfs_makes_of_it() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !prepare(&sandbox) {
        return;
    }
    let kernel = Podman::new(&sandbox, "kernel", Driver::Kernel);
    let ours = Podman::new(&sandbox, "ours", Driver::Ours);
    build(&kernel, "--layers");
    build(&ours, "--layers");
    let (expected, found) = (kernel.states("built"), ours.states("built"));
    assert_eq!(expected.len(), 1 + STEPS.len());
    assert_eq!(found.len(), expected.len());
    for (step, (expected, found)) in expected.iter().zip(&found).enumerate() {
        assert_eq!(found, expected, "after layer {step}");
    }
    let last = found.last().unwrap();
    assert_eq!(last["etc/linked"], "-rw-r--r-- 33/34 30 also etc/linked");
    assert_eq!((last["root/fifo"].as_str(), last["empty"].as_str()), ("prw-r----- 0/0 0", "drwxrws--- 0/0 0"));
    assert!(!last.contains_key("opt/dir/new") && last["opt/dir"].starts_with('-'));
}

#[test]
fn ordinary_users_build_run_and_commit() {
    const NAME: &str = "ordinary_users_build_run_and_commit";
    if rootless::inside().is_none() {
        let Some(_sandbox) = sandbox::enter() else { return };
        leave_hybrid();
        // in a namespace of its own below this one
        assert!(!rootless::again(Way::Fusermount, NAME));
        return;
    }
    let Some(sandbox) = sandbox::enter() else { return };
    if !prepare(&sandbox) {
        return;
    }
    let podman = Podman::new(&sandbox, "ours", Driver::Ours);
    build(&podman, "--layers=false");
    let script = "rm /moved/deep/b; echo z > /opt/z; chown 5:6 /opt/z; mkdir -p /srv/new; ls /moved/deep";
    assert_eq!(podman.shell(&["--name", "one"], "built", script), "");
    podman.call(&["commit", "-q", "one", "two"]);
    let states = podman.states("two");
    let last = states.last().unwrap();
    assert_eq!(last["etc/linked"], "-rw-r--r-- 33/34 30 also etc/linked");
    assert_eq!((&*last["opt/z"], &*last["empty"]), ("-rw-r--r-- 5/6 2", "drwxrws--- 0/0 0"));
    assert!(!last.contains_key("moved/deep/b") && last.contains_key("moved/deep"), "{last:?}");
    assert_eq!(
        podman.shell(&["--rm"], "two", "stat -c %u:%g:%a /opt/z /tmp /etc/linked"),
        "5:6:644\n0:0:1777\n33:34:644"
    );
}

#[test]
fn containers_run_are_changed_and_committed() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !prepare(&sandbox) {
        return;
    }
    let podman = Podman::new(&sandbox, "ours", Driver::Ours);
    podman.call(&["import", "-q", "root.tar", "base"]);
    let script = "rm -rf /opt/dir; mkdir /opt/dir; echo z > /opt/dir/z; rm /srv/file; ln /etc/passwd /etc/p2; chown 3 /etc/p2; ls /opt/dir";
    assert_eq!(podman.shell(&["--name", "one"], "base", script), "z");
    let mut diff: Vec<String> = podman.call(&["diff", "one"]).lines().map(str::to_owned).collect();
    diff.retain(|line| !line.contains("/run") && !line.contains("/etc/mtab"));
    diff.sort();
    let expected = ["A /etc/p2", "A /opt/dir/z", "C /etc", "C /srv", "D /opt/dir/a", "D /opt/dir/sub", "D /srv/file"];
    assert!(expected.iter().all(|line| diff.iter().any(|found| found == line)), "{diff:?}");
    // into it, out of it, and into what is committed
    fs::write(sandbox.path().join("given"), "given").unwrap();
    podman.call(&["cp", "given", "one:/opt/dir/given"]);
    podman.call(&["cp", "one:/opt/dir/z", "taken"]);
    assert_eq!(fs::read_to_string(sandbox.path().join("taken")).unwrap(), "z\n");
    podman.call(&["commit", "-q", "one", "two"]);
    let seen = podman.shell(&["--rm"], "two", "cat /opt/dir/*; ls /srv; stat -c '%h %a' /etc/p2 /tmp; ls -a /opt");
    assert_eq!(seen, "givenz\n2 644\n2 1777\n.\n..\ndir");
    podman.call(&["export", "-o", "exported.tar", "one"]);
    let exported: State = listing(&sandbox.path().join("exported.tar")).into_iter().collect();
    assert!(exported.contains_key("opt/dir/given") && !exported.contains_key("srv/file"), "{exported:?}");
    assert_eq!(exported["data/a"], "-rw-r--r-- 7/8 1");
    // out of the store and back
    podman.call(&["push", "-q", "two", "oci:layout:two"]);
    podman.call(&["save", "-q", "-o", "two.tar", "two"]);
    podman.call(&["rm", "-f", "-t", "0", "one"]);
    podman.call(&["rmi", "-f", "two"]);
    podman.call(&["load", "-q", "-i", "two.tar"]);
    podman.call(&["pull", "-q", "oci:layout:two"]);
    assert_eq!(podman.shell(&["--rm"], "two", "cat /opt/dir/given"), "given");
    // one layer in the place of all
    podman.build(&["--squash-all", "-t", "flat"], "FROM localhost/two\nRUN rm /opt/dir/given\n");
    let [flat] = &podman.states("flat")[..] else { panic!("one layer") };
    assert!(flat.contains_key("opt/dir/z") && !flat.contains_key("opt/dir/given"));
}

/// All that stands below a directory, and what files hold.
fn tree(root: &Path) -> State {
    let told = finish(Command::new("find").arg(root).args(["-mindepth", "1", "-printf", "%P\t%y %m %U:%G %n %l\n"]));
    assert_eq!((told.status, &*told.stderr), (Some(0), ""));
    let entry = |line: &str| {
        let (path, about) = line.split_once('\t').unwrap();
        let content = if about.starts_with('f') { fs::read(root.join(path)).unwrap() } else { Vec::new() };
        (path.to_owned(), format!("{about} {} {:?}", content.len(), content.get(..16).unwrap_or(&content)))
    };
    told.stdout.lines().map(entry).collect()
}

#[test]
fn a_store_of_fuse_overlayfs_is_read_and_given_back() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !prepare(&sandbox) {
        return;
    }
    // both of one store
    let ours = Podman::new(&sandbox, "store", Driver::Ours);
    let ours_conf = fs::read_to_string(ours.store().join("storage.conf")).unwrap();
    let debians = Podman::new(&sandbox, "store", Driver::Debians);
    let debians_conf = fs::read_to_string(ours.store().join("storage.conf")).unwrap();
    let changed = |conf: &str, change: &dyn Fn(&Path)| {
        fs::write(ours.store().join("storage.conf"), conf).unwrap();
        let at = PathBuf::from(ours.call(&["mount", "one"]));
        change(&at);
        let seen = tree(&at);
        ours.call(&["umount", "one"]);
        seen
    };
    debians.call(&["import", "-q", "root.tar", "base"]);
    debians.call(&["create", "--name", "one", "base", "sh"]);
    let theirs = changed(&debians_conf, &|at| {
        fs::remove_dir_all(at.join("opt/dir")).unwrap();
        fs::create_dir(at.join("opt/dir")).unwrap();
        fs::write(at.join("opt/dir/z"), "z").unwrap();
        fs::remove_file(at.join("srv/file")).unwrap();
        fs::write(at.join("etc/group"), "changed").unwrap();
    });
    assert!(theirs.contains_key("opt/dir/z") && !theirs.contains_key("opt/dir/a") && !theirs.contains_key("srv/file"));
    assert_eq!(without_links(&changed(&ours_conf, &|_| {})), without_links(&theirs));
    let more = changed(&ours_conf, &|at| {
        fs::remove_dir_all(at.join("data")).unwrap();
        fs::create_dir(at.join("data")).unwrap();
        fs::write(at.join("data/new"), "new").unwrap();
        fs::remove_file(at.join("opt/dir/z")).unwrap();
        fs::write(at.join("srv/file"), "again").unwrap();
        fs::remove_file(at.join("etc/group")).unwrap();
    });
    assert!(more.contains_key("data/new") && !more.contains_key("data/a") && !more.contains_key("etc/group"));
    assert_eq!(without_links(&changed(&debians_conf, &|_| {})), without_links(&more));
    assert_eq!(without_links(&changed(&ours_conf, &|_| {})), without_links(&more));
}

/// Without the link counts of directories, of which each says what it likes.
fn without_links(tree: &State) -> State {
    let mut tree = tree.clone();
    for told in tree.values_mut().filter(|told| told.starts_with('d')) {
        let words: Vec<&str> = told.split(' ').collect();
        *told = words[..3].join(" ");
    }
    tree
}

#[test]
fn volumes_images_and_mapped_owners_are_mounted_by_it() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !prepare(&sandbox) {
        return;
    }
    let podman = Podman::new(&sandbox, "ours", Driver::Ours);
    podman.call(&["import", "-q", "root.tar", "base"]);
    fs::create_dir(sandbox.path().join("source")).unwrap();
    fs::write(sandbox.path().join("source/file"), "source").unwrap();
    let volume = format!("{}:/vol:O", sandbox.path().join("source").display());
    let script = "echo changed > /vol/file; rm -f /vol/gone; echo new > /vol/new; cat /vol/file";
    assert_eq!(podman.shell(&["--rm", "-v", &volume], "base", script), "changed");
    assert_eq!(fs::read_to_string(sandbox.path().join("source/file")).unwrap(), "source");
    assert!(!sandbox.path().join("source/new").exists());
    // the lower directory is a mount of ours
    let image = "type=image,source=localhost/base,target=/image";
    assert_eq!(podman.shell(&["--rm", "--mount", image], "base", "cat /image/srv/file"), "file");
    let mapped = ["--name", "mapped", "--uidmap", "0:200000:65536", "--gidmap", "0:300000:65536"];
    let script =
        "mkdir /made && echo x > /made/file && chown 5:6 /made/file && stat -c %u:%g /made /made/file /data/a /";
    assert_eq!(podman.shell(&mapped, "base", script), "0:0\n5:6\n7:8\n0:0");
    podman.call(&["commit", "-q", "mapped", "mapped"]);
    let states = podman.states("mapped");
    let last = states.last().unwrap();
    assert_eq!((&*last["made"], &*last["made/file"]), ("drwxr-xr-x 0/0 0", "-rw-r--r-- 5/6 2"));
    assert_eq!(last["data/a"], "-rw-r--r-- 7/8 1");
    assert_eq!(fs::metadata("/dev/null").unwrap().mode() & 0o666, 0o666);
}

#[test]
fn owners_and_modes_that_a_store_keeps_in_attributes_come_out_right() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !prepare(&sandbox) {
        return;
    }
    let podman = Podman::new(&sandbox, "masked", Driver::Masked);
    podman.call(&["import", "-q", "root.tar", "base"]);
    let script = "stat -c '%u:%g %a' /data/a; echo x > /data/a; chown 9:9 /srv/file; stat -c %u:%g /data/a /srv/file";
    assert_eq!(podman.shell(&["--name", "one"], "base", script), "7:8 644\n7:8\n9:9");
    podman.call(&["commit", "-q", "one", "two"]);
    let states = podman.states("two");
    let last = states.last().unwrap();
    assert_eq!((&*last["data/a"], &*last["srv/file"]), ("-rw-r--r-- 7/8 2", "-rw-r--r-- 9/9 4"));
}
