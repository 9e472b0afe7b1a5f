//! A store of images, which must be empty between two inputs.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use launcher::fuzzing::image;
use sha2::{Digest as _, Sha256};

use crate::ground;

/// Where the store of root is; mounted over in this process.
const STATE: &str = "/var/lib";
const STORE: &str = "/var/lib/rlaunch/images";
/// What an image is called while it is there.
const NAME: &str = "fuzzed:1";
/// What the launcher's own failures exit with.
const OWN_FAILURE: u8 = 125;

static STORE_OF_OURS: LazyLock<Store> = LazyLock::new(|| {
    let ground = ground::enter();
    ground::tmpfs(Path::new(STATE));
    Store { ground }
});

/// The store of this process, and a place for what comes into it.
pub struct Store {
    ground: PathBuf,
}

impl Store {
    /// The only one.
    pub fn get() -> &'static Store {
        &STORE_OF_OURS
    }

    /// A place for something to import.
    pub fn path(&self, name: &str) -> PathBuf {
        self.ground.join(name)
    }

    /// The digest of something, in hexadecimal.
    pub fn digest(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Imports something with a name of ours and, where that is taken, looks at it; then with those that it has itself.
    ///
    /// # Panics
    /// Where something is left of what was refused or removed, or what was taken cannot be shown.
    pub fn import(&self, path: &Path) {
        if do_it(&["import", "--quiet", "--name", NAME, &path.display().to_string()]) {
            for words in [&["inspect", NAME][..], &["history", NAME], &["ls"], &["tag", NAME, "other:2"]] {
                assert!(do_it(words), "{words:?} of an image that was taken");
            }
            assert!(do_it(&["rm", NAME, "other:2"]));
        }
        assert_eq!(held(), Vec::<PathBuf>::new(), "something is left");
        if do_it(&["import", "--quiet", &path.display().to_string()]) {
            assert!(do_it(&["ls"]) && do_it(&["gc"]));
            fs::remove_dir_all(STORE).expect("empty the store");
        } else {
            // Of several images those before the one that is refused are there, each whole.
            assert!(do_it(&["ls"]) && do_it(&["gc"]));
        }
    }
}

/// Whether it is done; what fails says why, with the status of the launcher.
fn do_it(words: &[&str]) -> bool {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    match image(&words) {
        Ok(status) => status == 0,
        Err((status, why)) => {
            assert!(status == OWN_FAILURE && !why.is_empty() && !why.contains("has a defect"), "{status}: {why}");
            false
        }
    }
}

/// What the store holds besides what is always there.
fn held() -> Vec<PathBuf> {
    let of = |name: &str| fs::read_dir(Path::new(STORE).join(name)).into_iter().flatten();
    let entries = ["blobs/sha256", "diffs", "layers", "tmp"].into_iter().flat_map(of);
    entries.map(|entry| entry.expect("list the store").path()).collect()
}
