//! The file systems that branches lie on: what the machine has, and some that share data between files, each in an
//! image that is made once.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::tree::Scale;
use crate::tree::project::run;

/// Where the branches of a workload lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    /// Lower trees in the store, tops on a tmpfs or where `--top` says.
    Usual,
    /// All on one btrfs.
    Btrfs,
    /// All on one xfs.
    Xfs,
}

/// The folders of one medium.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ground {
    /// Where the lower trees are.
    pub(crate) trees: PathBuf,
    /// Where cells make their tops and mount points.
    pub(crate) tops: PathBuf,
}

impl Medium {
    /// Its folders below the store.
    pub(crate) fn ground(self, store: &Path, scale: Scale) -> Ground {
        match self {
            Medium::Usual => Ground { trees: store.join(scale.folder()), tops: store.join("tops") },
            Medium::Btrfs | Medium::Xfs => {
                let root = store.join(self.name());
                Ground { trees: root.join("trees"), tops: root.join("tops") }
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Medium::Usual => "usual",
            Medium::Btrfs => "btrfs",
            Medium::Xfs => "xfs",
        }
    }

    /// Mounts the image of this medium, and makes it first where it is not there. There is nothing to do for the usual
    /// one.
    pub(crate) fn mount(self, store: &Path, scale: Scale) -> io::Result<()> {
        if self == Medium::Usual {
            return Ok(());
        }
        let image = store.join(format!("{}.{}", scale.folder(), self.name()));
        if !image.exists() {
            self.make(&image, scale)?;
        }
        let ground = self.ground(store, scale);
        let root = store.join(self.name());
        fs::create_dir_all(&root)?;
        run(Command::new("mount").args(["-t", self.name(), "-o", "loop,noatime"]).arg(&image).arg(&root))?;
        empty(&ground.tops)?;
        fs::create_dir_all(&ground.trees)
    }

    /// Made under another name first: what has its name is whole.
    fn make(self, image: &Path, scale: Scale) -> io::Result<()> {
        let unfinished = image.with_extension("unfinished");
        // Room for the trees, and twice for a copy of the largest file by those who share nothing.
        let size = scale.of(8 << 30, 1 << 30);
        File::create(&unfinished)?.set_len(size as u64)?;
        let mut command = match self {
            Medium::Xfs => Command::new("mkfs.xfs"),
            _ => Command::new("mkfs.btrfs"),
        };
        if self == Medium::Xfs {
            command.args(["-m", "reflink=1"]);
        }
        run(command.arg("-q").arg(&unfinished).stdout(Stdio::null()))?;
        fs::rename(&unfinished, image)
    }
}

/// Without what a run that was killed has left.
pub(crate) fn empty(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir(folder),
    }
}
