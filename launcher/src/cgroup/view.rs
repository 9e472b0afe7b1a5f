//! What a container sees of its cgroups: `/sys/fs/cgroup`, read-only, with its own as the root.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::detect::{Mounted, Version};
use crate::rootfs::Rootfs;

const AT: &str = "/sys/fs/cgroup";
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// The mounts that are to be made, once the container has a cgroup namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    kind: &'static str,
    at: PathBuf,
    data: String,
}

impl View {
    /// A lone v2 is all of it; else every hierarchy has a directory, as on the host. Nothing where there is none.
    pub(crate) fn of<'a>(hierarchies: impl Iterator<Item = &'a Mounted>) -> Option<View> {
        let all: Vec<&Mounted> = hierarchies.collect();
        let parts: Vec<Part> = match all.as_slice() {
            [only] if only.version == Version::V2 => {
                vec![Part { kind: "cgroup2", at: AT.into(), data: String::new() }]
            }
            all => all.iter().map(|mounted| part(mounted)).collect(),
        };
        (!parts.is_empty()).then_some(View(parts))
    }

    /// Mounts them.
    pub(crate) fn show(&self, root: &Rootfs) -> Result<(), Errno> {
        let at = Path::new(AT);
        let has_directories = self.0.iter().any(|part| part.at != at);
        if has_directories {
            root.mount_on(at, |target| mount(Some("tmpfs"), target, Some("tmpfs"), FLAGS, Some("mode=755")))?;
        }
        for part in &self.0 {
            if has_directories {
                root.make_directory(&part.at, 0o755)?;
            }
            let flags = FLAGS | MsFlags::MS_RDONLY;
            root.mount_on(&part.at, |target| {
                mount(Some(part.kind), target, Some(part.kind), flags, Some(&*part.data))
            })?;
        }
        if has_directories {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | FLAGS;
            root.mount_on(at, |target| mount(None::<&str>, target, None::<&str>, flags, None::<&str>))?;
        }
        Ok(())
    }
}

fn part(mounted: &Mounted) -> Part {
    let (kind, name) = match mounted.version {
        Version::V1 => ("cgroup", mounted.names.join(",")),
        Version::V2 => ("cgroup2", "unified".to_owned()),
    };
    Part { kind, at: Path::new(AT).join(&name), data: mounted.names.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(version: Version, names: &[&str]) -> Mounted {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Mounted { version, controllers: Vec::new(), names, root: "/c".into(), own: "/c".into() }
    }

    #[test]
    fn v2_alone_has_no_directory_of_its_own() {
        let alone = [mounted(Version::V2, &[])];
        assert_eq!(
            View::of(alone.iter()),
            Some(View(vec![Part { kind: "cgroup2", at: AT.into(), data: String::new() }]))
        );
        assert_eq!(View::of([].iter()), None);
    }

    #[test]
    fn several_lie_beside_each_other() {
        let several = [mounted(Version::V1, &["cpu", "cpuacct"]), mounted(Version::V2, &[])];
        let expected = [
            Part { kind: "cgroup", at: "/sys/fs/cgroup/cpu,cpuacct".into(), data: "cpu,cpuacct".to_owned() },
            Part { kind: "cgroup2", at: "/sys/fs/cgroup/unified".into(), data: String::new() },
        ];
        assert_eq!(View::of(several.iter()), Some(View(expected.to_vec())));
    }
}
