//! One limit as the kernel takes it: which file of which cgroup gets which text.

use nix::errno::Errno;

use super::detect::Controller;
use super::directory::Directory;

/// Which of a container's cgroups is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The one around the container and its union's daemon: what they use together.
    Common,
    /// The container's.
    Container,
    /// The union's daemon's.
    Daemon,
}

/// What to write, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// The option that asks for it.
    pub(crate) option: &'static str,
    pub(crate) controller: Controller,
    pub(crate) place: Place,
    /// File and value. Kernels differ in names: the first file that is there is written.
    pub(crate) files: Vec<(&'static str, String)>,
    /// Nobody has asked for exactly this: where it cannot be had, the container does without.
    pub(crate) is_implied: bool,
}

impl Setting {
    pub(crate) fn new(
        option: &'static str,
        controller: Controller,
        place: Place,
        files: Vec<(&'static str, String)>,
    ) -> Setting {
        Setting { option, controller, place, files, is_implied: false }
    }

    /// The same, where nobody has asked for exactly this.
    pub(crate) fn implied(self) -> Setting {
        Setting { is_implied: true, ..self }
    }

    /// Writes it; ENOENT where the kernel has none of the files.
    pub(crate) fn write(&self, directory: &Directory) -> Result<(), Errno> {
        let mut result = Err(Errno::ENOENT);
        for (file, value) in &self.files {
            result = directory.write(file, value);
            if result != Err(Errno::ENOENT) {
                break;
            }
        }
        result
    }

    /// The names of the files, to tell them.
    pub(crate) fn file_names(&self) -> String {
        self.files.iter().map(|(file, _)| *file).collect::<Vec<_>>().join(" or ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_first_file_that_is_there_is_written() {
        let place = tempfile::tempdir().unwrap();
        for name in ["b", "c"] {
            fs::write(place.path().join(name), "").unwrap();
        }
        let directory = Directory::open(place.path()).unwrap();
        let files = [("a", "1"), ("b", "2"), ("c", "3")].map(|(name, value)| (name, value.to_owned())).to_vec();
        let setting = Setting::new("--x", Controller::Io, Place::Container, files);
        assert_eq!(setting.write(&directory), Ok(()));
        assert_eq!((directory.number("b"), directory.number("c")), (Some(2), None));
        assert_eq!(setting.file_names(), "a or b or c");
        let absent = Setting { files: vec![("a", "1".to_owned())], ..setting };
        assert_eq!(absent.write(&directory), Err(Errno::ENOENT));
    }
}
