//! A machine for tests: a Debian kernel that boots in qemu, with its whole root file system in memory or on a disk.
//!
//! It has busybox and what a test adds, does what a shell script says, and is gone. The kernel's messages and the
//! script's output come by two serial lines, so that neither disturbs the other. Where the processor can, KVM runs it,
//! and else qemu itself, which takes several times as long.

// Every test file uses a part of this.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::mount::poll;
use harness::sandbox::{self, run};

use crate::tools;

/// The line that says how the script has ended; without it the machine did not get there.
const END: &str = "the script ended with ";

/// The command of a shell that tells how the one before it has ended.
pub(crate) fn end() -> String {
    format!("echo \"{END}$?\" > /dev/ttyS1")
}

/// A machine before it is started.
pub(crate) struct Machine {
    /// What tests/vm/fetch-kernel has made.
    kernel: PathBuf,
    folder: tempfile::TempDir,
    command_line: String,
    disks: Vec<Disk>,
}

/// `/dev/vda` is the first, `/dev/vdb` the second.
struct Disk {
    image: PathBuf,
    read_only: bool,
}

/// What there is of a machine once it is gone.
#[derive(Debug)]
pub(crate) struct Report {
    /// The exit status of the script; `None` where it did not come to its end in time.
    pub(crate) status: Option<i32>,
    /// What the script has printed.
    pub(crate) output: String,
    /// What the kernel has said.
    pub(crate) console: String,
}

impl Machine {
    /// A machine with the kernel of a Debian suite, which tests/setup has fetched. `None` where the test is skipped.
    pub(crate) fn with_kernel_of(suite: &str) -> Option<Machine> {
        let kernel = tools::cache().join("kernels-2").join(suite);
        if !kernel.join("vmlinuz").exists() {
            sandbox::skip(&format!("it needs {}, which tests/setup fetches", kernel.display()));
            return None;
        }
        let busybox = tools::find("busybox")?;
        tools::find("qemu-system-x86_64")?;
        let folder = tempfile::Builder::new().prefix("runionfs-test-").tempdir_in("/var/tmp").expect("a directory");
        let mut machine = Machine { kernel, folder, command_line: String::new(), disks: Vec::new() };
        for name in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/sbin", "var/tmp"] {
            fs::create_dir_all(machine.at(name)).expect("make a directory");
        }
        fs::set_permissions(machine.at("tmp"), fs::Permissions::from_mode(0o1777)).expect("chmod /tmp");
        fs::copy(busybox, machine.at("bin/busybox")).expect("copy busybox");
        run(Command::new("cp").arg("-a").arg(machine.kernel.join("lib")).arg(machine.at("")));
        machine.add_file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
        machine.add_file("etc/group", "root:x:0:\n");
        Some(machine)
    }

    /// A path in its root file system.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join("root").join(name.trim_start_matches('/'))
    }

    /// Its kernel's folder, with `lib/modules`.
    pub(crate) fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// More words for the kernel's command line.
    pub(crate) fn boot_with(&mut self, words: &str) {
        self.command_line.push(' ');
        self.command_line.push_str(words);
    }

    /// As [`Machine::add_file`]; it can be run.
    pub(crate) fn add_script(&mut self, at: &str, content: &str) {
        self.add_file(at, content);
        fs::set_permissions(self.at(at), fs::Permissions::from_mode(0o755)).expect("chmod a script");
    }

    pub(crate) fn add_file(&mut self, at: &str, content: &str) {
        let path = self.at(at);
        fs::create_dir_all(path.parent().expect("a directory above it")).expect("make directories");
        fs::write(path, content).expect("write a file of the machine");
    }

    /// Adds a program of this machine at the same path, and the libraries that it loads.
    pub(crate) fn add_program(&mut self, program: &Path) {
        let text = Command::new("ldd").arg(program).output().expect("run ldd").stdout;
        // A program that loads none is no error.
        let text = String::from_utf8(text).expect("ldd prints text");
        for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
            self.add_stripped(Path::new(library));
        }
        self.add_stripped(program);
    }

    /// Adds a program of this machine that is in `PATH`, in place of the one that busybox has. `None` where it is
    /// missing, and the test is skipped.
    pub(crate) fn add_tool(&mut self, name: &str) -> Option<()> {
        self.add_program(&tools::find(name)?);
        Some(())
    }

    /// Without what debuggers read, which is most of a test program.
    fn add_stripped(&mut self, file: &Path) {
        let target = self.at(file.to_str().expect("a path in ASCII"));
        if target.exists() {
            return;
        }
        fs::create_dir_all(target.parent().expect("a directory above it")).expect("make directories");
        run(Command::new("strip").arg("-o").arg(&target).arg(file));
        let mode = fs::metadata(file).expect("it was just read").permissions();
        fs::set_permissions(&target, mode).expect("chmod");
    }

    /// Gives it a disk with ext4, at `/disk` where its root is in memory; everybody may write there.
    pub(crate) fn add_disk(&mut self, mebibytes: u64) {
        self.make_disk(mebibytes, false, &[]);
    }

    /// Gives it one more disk, and its image; `mkfs` goes to mkfs.ext4.
    pub(crate) fn make_disk(&mut self, mebibytes: u64, read_only: bool, mkfs: &[&OsStr]) -> PathBuf {
        let image = self.folder.path().join(format!("disk{}", self.disks.len()));
        let file = File::create(&image).expect("make a disk");
        file.set_len(mebibytes << 20).expect("size the disk");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).args(mkfs).arg(&image));
        self.disks.push(Disk { image: image.clone(), read_only });
        image
    }

    /// Starts it, runs the script as root, and waits until it is gone; killed once the time is up.
    pub(crate) fn run(mut self, script: &str, limit: Duration) -> Report {
        self.add_script("init", &self.init());
        self.add_file("script", script);
        let initramfs = self.folder.path().join("initramfs");
        let pack = format!("find . | busybox cpio -o -H newc > {} 2>/dev/null", initramfs.display());
        run(Command::new("sh").args(["-c", &pack]).current_dir(self.at("")));
        self.boot(&initramfs, limit)
    }

    /// Starts it with an initramfs that is not its root, and waits until it is gone; killed once the time is up. What
    /// it runs on its disk prints to /dev/ttyS1, last of all the line of [`end`].
    pub(crate) fn boot(&self, initramfs: &Path, limit: Duration) -> Report {
        let mut running = Qemu(self.qemu(initramfs).spawn().expect("start qemu"));
        let ended = poll(limit, || running.0.try_wait().expect("wait for qemu"));
        drop(running);
        let read = |name: &str| {
            let bytes = fs::read(self.folder.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\r', "")
        };
        let (output, console) = (read("output"), read("console") + &read("qemu"));
        let status = output.rsplit_once(END).and_then(|(_, status)| status.trim().parse().ok());
        Report { status: status.filter(|_| ended.is_some()), output, console }
    }

    fn init(&self) -> String {
        let disk =
            if !self.disks.is_empty() { "mkdir /disk; mount -t ext4 /dev/vda /disk; chmod 1777 /disk" } else { "" };
        format!(
            "#!/bin/busybox sh
            export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
            /bin/busybox --install -s /bin
            mount -t proc proc /proc
            mount -t sysfs sysfs /sys
            mount -t devtmpfs devtmpfs /dev
            mkdir /dev/pts /dev/shm
            mount -t devpts devpts /dev/pts
            mount -t tmpfs -o mode=1777 tmpfs /dev/shm
            for module in virtio_pci virtio_blk fuse loop; do modprobe $module; done
            chmod 666 /dev/fuse
            ip link set lo up
            {disk}
            stty raw -F /dev/ttyS1
            sh /script < /dev/null > /dev/ttyS1 2>&1
            {}
            reboot -f\n",
            end()
        )
    }

    fn qemu(&self, initramfs: &Path) -> Command {
        let file = |name: &str| format!("file:{}", self.folder.path().join(name).display());
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-cpu", "max"]);
        command.args(["-smp", "2", "-m", "1024"]);
        let accelerators: &[&str] = if has_kvm() { &["-accel", "kvm", "-accel", "tcg"] } else { &["-accel", "tcg"] };
        command.args(accelerators).args(["-serial", &file("console"), "-serial", &file("output")]);
        command.arg("-kernel").arg(self.kernel.join("vmlinuz")).arg("-initrd").arg(initramfs);
        // The kernel asks whether the timer is in time, which it is not on a machine that is busy.
        let always = "console=ttyS0 loglevel=4 panic=-1 random.trust_cpu=on no_timer_check";
        command.args(["-append", &format!("{always}{}", self.command_line)]);
        for Disk { image, read_only } in &self.disks {
            let read_only = if *read_only { "on" } else { "off" };
            let image = image.display();
            command.args(["-drive", &format!("file={image},if=virtio,format=raw,cache=unsafe,readonly={read_only}")]);
        }
        let errors = File::create(self.folder.path().join("qemu")).expect("make a file");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        command
    }
}

/// Whether KVM can run any kernel. It is there in some virtual machines whose processor shows neither extension, and
/// kernels that were not made for it hang there.
fn has_kvm() -> bool {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |name| flags.split_whitespace().any(|flag| flag == name);
    (has("vmx") || has("svm")) && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// A qemu that does not outlive the test.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // It has ended, as a rule.
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}
