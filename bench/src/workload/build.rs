//! An image that podman builds, and all that it mounts for that: who mounts is its `mount_program`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::{Job, Place, Workload};
use crate::contender::Storage;
use crate::tree::Tree;
use crate::tree::project::run;

const FAMILY: &str = "build";

pub(super) const WORKLOADS: &[Workload] = &[Workload::timed(
    "build-podman",
    "podman builds an image in three steps, on one of 20,000 files",
    Tree::Files,
    build,
)
.reads_from(Tree::Busybox)
.builds()
.of(FAMILY)];

/// What changes an image in every way, a layer each.
const STEPS: &str = "\
FROM localhost/base
RUN busybox rm -rf /d000 /d001/f000 && busybox mkdir /d000 && echo new > /d000/new
COPY added /d002/added
RUN busybox mv /d003 /moved && busybox ln /d004/f000 /d004/linked && busybox mkfifo /fifo && busybox chown 33 /d005/f000
";

/// podman's storage, which it mounts on itself and leaves mounted.
struct Store(PathBuf);

impl Store {
    fn make(place: PathBuf, storage: &Storage) -> io::Result<Store> {
        let store = Store(place);
        let at = store.0.display();
        ["graph", "run", "tmp", "context"].iter().try_for_each(|name| fs::create_dir_all(store.0.join(name)))?;
        let mut text = format!("[storage]\ndriver=\"overlay\"\ngraphroot=\"{at}/graph\"\nrunroot=\"{at}/run\"\n");
        if let Some(program) = &storage.program {
            text += &format!("[storage.options.overlay]\nmount_program=\"{}\"\n", program.display());
        }
        fs::write(store.0.join("storage.conf"), text)?;
        let engine = "[engine]\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"none\"\n";
        fs::write(store.0.join("containers.conf"), engine)?;
        fs::write(store.0.join("context/Containerfile"), STEPS)?;
        fs::write(store.0.join("context/added"), [b'x'; 4096])?;
        Ok(store)
    }

    fn podman(&self, storage: &Storage) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_STORAGE_CONF", self.0.join("storage.conf"));
        command.env("CONTAINERS_CONF", self.0.join("containers.conf")).env("TMPDIR", self.0.join("tmp"));
        if let Some(libraries) = &storage.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        match umount2(&self.0.join("graph/overlay"), MntFlags::MNT_DETACH) {
            // it was not mounted yet
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => eprintln!("bench: podman's storage stays mounted: {error}"),
        }
    }
}

fn build(place: &Place<'_>) -> io::Result<Job<()>> {
    let storage = place.storage.ok_or_else(|| io::Error::other("podman cannot mount by it"))?.clone();
    let store = Store::make(place.root.with_file_name("store"), &storage)?;
    let archive = store.0.join("tmp/base.tar");
    pack(&archive, [place.assets, place.root])?;
    run(store.podman(&storage).args(["import", "-q"]).arg(&archive).arg("base"))?;
    fs::remove_file(&archive)?;
    // Nothing but the storage: no network, no control groups.
    let mut command = store.podman(&storage);
    command.args(["build", "-q", "--layers", "--isolation", "chroot", "-t", "built"]).arg(store.0.join("context"));
    Ok(Box::new(move || {
        // It is unmounted with the job.
        let _kept = &store;
        run(&mut command)
    }))
}

/// Several trees in one archive. Their roots are left out, for podman takes no path twice.
fn pack(archive: &Path, trees: [&Path; 2]) -> io::Result<()> {
    let mut command = Command::new("tar");
    command.args(["--owner=0", "--group=0", "-cf"]).arg(archive);
    for tree in trees {
        command.arg("-C").arg(tree);
        for entry in fs::read_dir(tree)? {
            command.arg(entry?.file_name());
        }
    }
    run(&mut command)
}
