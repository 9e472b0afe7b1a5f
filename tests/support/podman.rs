//! podman and buildah with a storage of their own, and what layers of images hold.

// Every test file uses a part of this.
#![allow(dead_code, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::finish;
use harness::rootless;
use harness::sandbox::{self, Sandbox, run};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::Pid;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
const HYBRID: &str = "/sys/fs/cgroup/unified";

/// Limits that may be had without CAP_SYS_RESOURCE.
pub(crate) const LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4096:4096"];

/// The commands of the image; all of them are busybox.
const APPLETS: &[&str] = &["sh", "cat", "chown", "cp", "echo", "id", "ln", "ls", "mkdir", "mkfifo", "mv", "rm", "stat"];

/// Each line is a layer. What a union can get wrong is in them.
pub(crate) const STEPS: &[&str] = &[
    "RUN rm -rf /opt/dir && mkdir /opt/dir && echo new > /opt/dir/new",
    "RUN rm /srv/file && mv /data /moved && echo more >> /etc/group",
    "COPY hello /opt/hello",
    "RUN setcap cap_net_raw+ep /opt/hello",
    "RUN ln /etc/passwd /etc/linked && chown 33:34 /etc/linked && mkfifo -m 640 /root/fifo && ln -s a /root/link",
    "RUN rm -rf /opt/dir && echo file > /opt/dir && rm /moved/a && rm -rf /empty && mkdir -m 2770 /empty",
];

/// Who mounts for podman.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    Kernel,
    Ours,
    /// Ours, with owners and modes kept in an attribute.
    Masked,
    /// fuse-overlayfs as Debian has it.
    Debians,
}

/// podman with a storage of its own.
pub(crate) struct Podman<'a> {
    pub(crate) sandbox: &'a Sandbox,
    name: &'static str,
    parent: String,
}

impl<'a> Podman<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox, name: &'static str, driver: Driver) -> Podman<'a> {
        let store = sandbox.path().join(name);
        for dir in ["graph", "run", "tmp"] {
            fs::create_dir_all(store.join(dir)).unwrap();
        }
        let at = store.display();
        let mut storage = format!("[storage]\ndriver=\"overlay\"\ngraphroot=\"{at}/graph\"\nrunroot=\"{at}/run\"\n");
        // of ordinary users it says so by another word
        storage += &format!("rootless_storage_path=\"{at}/graph\"\n");
        match driver {
            Driver::Kernel | Driver::Ours => {}
            Driver::Masked => storage += "[storage.options.overlay]\nforce_mask=\"shared\"\n",
            Driver::Debians => storage += "[storage.options.overlay]\nmount_program=\"/usr/bin/fuse-overlayfs\"\n",
        }
        fs::write(store.join("storage.conf"), storage).unwrap();
        if matches!(driver, Driver::Ours | Driver::Masked) {
            let program = sandbox.path().join("fuse-overlayfs");
            let mut setup = Command::new(BIN);
            setup.args(["setup", "podman", "--program"]).arg(program);
            run(setup.env("CONTAINERS_STORAGE_CONF", store.join("storage.conf")));
        }
        let engine = format!("[engine]\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"none\"\ntmp_dir=\"{at}/tmp\"\n");
        fs::write(store.join("containers.conf"), engine).unwrap();
        let number = sandbox.path().file_name().unwrap().display();
        let parent = format!("{number}-{name}");
        Podman { sandbox, name, parent }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.sandbox.path().join(self.name)
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        self.command_of("podman", words)
    }

    fn command_of(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new(program);
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
    pub(crate) fn call(&self, words: &[&str]) -> String {
        let outcome = finish(&mut self.command(words));
        assert_eq!(outcome.status, Some(0), "podman {words:?} on {}: {}", self.name, outcome.stderr);
        outcome.stdout.trim().to_owned()
    }

    /// Runs buildah on the same storage; what it says on standard output.
    #[track_caller]
    pub(crate) fn buildah(&self, words: &[&str]) -> String {
        let outcome = finish(&mut self.command_of("buildah", words));
        assert_eq!(outcome.status, Some(0), "buildah {words:?} on {}: {}", self.name, outcome.stderr);
        outcome.stdout.trim().to_owned()
    }

    /// Runs a shell in a container.
    #[track_caller]
    pub(crate) fn shell(&self, options: &[&str], image: &str, script: &str) -> String {
        let group: &[&str] = if rootless::inside().is_none() { &["--cgroup-parent", &self.parent] } else { &[] };
        let fixed = [&["run", "--network", "none"], group].concat();
        self.call(&[&fixed[..], &LIMITS, options, &[image, "sh", "-c", script]].concat())
    }

    #[track_caller]
    pub(crate) fn build(&self, options: &[&str], file: &str) {
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
    pub(crate) fn states(&self, image: &str) -> Vec<State> {
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
pub(crate) type State = BTreeMap<String, String>;

/// The entries of an archive in their order.
pub(crate) fn listing(archive: &Path) -> Vec<(String, String)> {
    let words = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--full-time", "-tvvf"];
    let said = finish(Command::new("tar").args(words).arg(archive));
    assert_eq!(said.status, Some(0), "{}", said.stderr);
    let mut entries: Vec<(String, String)> = Vec::new();
    for line in said.stdout.lines() {
        match (line.strip_prefix("  x: "), entries.last_mut()) {
            // marks of the kernel's overlayfs that an ordinary user's layers have with it, though nobody means them
            (Some(attribute), _) if attribute.contains(" user.overlay.") => {}
            // an extended attribute of the entry: its length and its name; a link has its target's
            (Some(attribute), Some((_, told))) if !told.starts_with('h') => told.push_str(&format!(" {attribute}")),
            (Some(_), Some(_)) => {}
            _ => entries.push(entry(line)),
        }
    }
    entries
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
    let mode = words[0].trim_end_matches('*');
    (name, format!("{mode} {} {} {target}", words[1], words[2]).trim_end().to_owned())
}

/// Lays a layer on what is there, as the image specification says.
pub(crate) fn apply(state: &mut State, layer: &[(String, String)]) {
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
pub(crate) fn prepare(sandbox: &Sandbox) -> bool {
    for tool in ["podman", "buildah", "crun", "busybox", "setcap", "ldd"] {
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
pub(crate) fn leave_hybrid() {
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
    // and what gives a program a capability, with its libraries
    let script = "for file in $(ldd $(command -v setcap) | grep -o '/[^ ]*') $(command -v setcap); do \
                  mkdir -p \"$1${file%/*}\" && cp -L $file \"$1$file\"; done";
    run(Command::new("sh").args(["-c", script, "sh"]).arg(root));
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
pub(crate) fn build(podman: &Podman<'_>, layers: &str) {
    podman.call(&["import", "-q", "root.tar", "base"]);
    podman.build(&[layers, "-t", "built"], &format!("FROM localhost/base\n{}\n", STEPS.join("\n")));
}
