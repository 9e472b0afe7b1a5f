//! A store of a test's own, and images for it.

// Every test file uses a part of this.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::sandbox::run;
use nix::mount::{MsFlags, mount};

use crate::launch::{RLAUNCH, Tree, printed};

/// Where the store of root is; the test's own directory lies there.
pub(crate) const STORE: &str = "/var/lib/rlaunch/images";

/// An empty store, and a tree with busybox to make images of. What the host has in `/run` and `/var/lib` is hidden.
pub(crate) struct Images {
    pub(crate) tree: Tree,
}

impl Images {
    /// `None` where the test is skipped.
    pub(crate) fn new() -> Option<Images> {
        let tree = Tree::new()?;
        let state = tree.beside("var-lib");
        fs::create_dir(&state).expect("make a place for the store");
        mount(Some(&state), "/var/lib", None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .expect("hide the host's /var/lib");
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("hide the host's /run");
        Some(Images { tree })
    }

    /// `rlaunch image` and these words.
    pub(crate) fn image(&self, words: &[&str]) -> Outcome {
        finish(Command::new(RLAUNCH).arg("image").args(words).current_dir(self.tree.beside("")))
    }

    /// What it prints, where it must succeed and have nothing to complain about.
    #[track_caller]
    pub(crate) fn print(&self, words: &[&str]) -> String {
        printed(self.image(words))
    }

    /// What a command prints in a container on an image.
    #[track_caller]
    pub(crate) fn run(&self, words: &[&str]) -> String {
        printed(finish(Command::new(RLAUNCH).args(["run", "--image"]).args(words)))
    }

    /// A tar archive of a directory.
    pub(crate) fn archive(&self, directory: &Path) -> Vec<u8> {
        let file = self.tree.beside("layer.tar");
        run(Command::new("tar").arg("-C").arg(directory).arg("-cf").arg(&file).arg("."));
        fs::read(file).expect("read the layer")
    }

    /// A layer of these files, given by their paths and contents.
    pub(crate) fn layer(&self, files: &[(&str, &str)]) -> Vec<u8> {
        let directory = self.tree.beside("layer");
        for (path, content) in files {
            let path = directory.join(path);
            fs::create_dir_all(path.parent().expect("a file in a directory")).expect("make a layer");
            fs::write(path, content).expect("make a layer");
        }
        let layer = self.archive(&directory);
        fs::remove_dir_all(directory).expect("remove what the layer was made of");
        layer
    }

    /// A layer with busybox.
    pub(crate) fn base(&self) -> Vec<u8> {
        self.archive(&self.tree.path(""))
    }

    /// Writes an image as `docker save` does, unpacked: the layers, the lowest first, and the `config` part of its
    /// configuration.
    pub(crate) fn docker(&self, name: &str, config: &str, layers: &[Vec<u8>]) -> PathBuf {
        let directory = self.tree.beside(name);
        fs::create_dir(&directory).expect("make an image");
        let mut names = Vec::new();
        let mut diff_ids = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let name = format!("{number}.tar");
            fs::write(directory.join(&name), layer).expect("make an image");
            diff_ids.push(format!("\"sha256:{}\"", sha256(&directory.join(&name))));
            names.push(format!("\"{name}\""));
        }
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2024-05-06T07:08:09Z","config":{config},"rootfs":{{"type":"layers","diff_ids":[{}]}},"history":[{{"created":"2024-05-06T07:08:09Z","created_by":"by hand"}}]}}"#,
            diff_ids.join(",")
        );
        fs::write(directory.join("config.json"), text).expect("make an image");
        let list = format!(r#"[{{"Config":"config.json","RepoTags":["{name}:1"],"Layers":[{}]}}]"#, names.join(","));
        fs::write(directory.join("manifest.json"), list).expect("make an image");
        directory
    }

    /// Everything that the store holds besides what is always there.
    pub(crate) fn held(&self) -> Vec<PathBuf> {
        let directories = ["blobs/sha256", "diffs", "layers", "tmp"];
        let entries =
            directories.iter().flat_map(|name| fs::read_dir(Path::new(STORE).join(name)).into_iter().flatten());
        entries.map(|entry| entry.expect("list the store").path()).collect()
    }
}

/// The digest of a file, by a program that is not ours.
pub(crate) fn sha256(path: &Path) -> String {
    let outcome = finish(Command::new("sha256sum").arg(path));
    outcome.stdout.split_whitespace().next().expect("a digest").to_owned()
}
