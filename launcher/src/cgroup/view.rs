//! What a container sees of its cgroups: `/sys/fs/cgroup`, read-only, with its own as the root.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::mkdir;

use super::Cgroups;
use super::detect::{Controller, Mounted, Version};
use super::setting::Place;
use crate::rootfs::Rootfs;

const AT: &str = "/sys/fs/cgroup";
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// The mounts that are to be made, once the container has a cgroup namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    kind: &'static str,
    /// The directory below; none where it is all there is.
    name: Option<String>,
    data: String,
}

impl View {
    /// A lone v2 is all of it; else every hierarchy has a directory, as on the host. Nothing where there is none.
    pub(crate) fn of<'a>(hierarchies: impl Iterator<Item = &'a Mounted>) -> Option<View> {
        let all: Vec<&Mounted> = hierarchies.collect();
        let parts: Vec<Part> = match all.as_slice() {
            [only] if only.version == Version::V2 => {
                vec![Part { kind: "cgroup2", name: None, data: String::new() }]
            }
            all => all.iter().map(|mounted| part(mounted)).collect(),
        };
        (!parts.is_empty()).then_some(View(parts))
    }

    /// Mounts them.
    pub(crate) fn show(&self, root: &Rootfs) -> Result<(), Errno> {
        let at = Path::new(AT);
        let cover = || root.mount_on(at, |target| mount(Some("tmpfs"), target, Some("tmpfs"), FLAGS, Some("mode=755")));
        let [Part { name: None, kind, data }] = self.0.as_slice() else {
            cover()?;
            // From here on it is the tmpfs, in which nobody but us has made anything.
            root.mount_on(at, |target| self.0.iter().try_for_each(|part| part.show_in(target)))?;
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | FLAGS;
            return root.mount_on(at, |target| mount(None::<&str>, target, None::<&str>, flags, None::<&str>));
        };
        let show = || root.mount_on(at, |target| mount_one(kind, target, data));
        match show() {
            // An ordinary user's container has all of the host's /sys, and no file system can be mounted on itself.
            Err(Errno::EBUSY) => cover().and_then(|()| show()),
            result => result,
        }
    }
}

impl Part {
    fn show_in(&self, directory: &Path) -> Result<(), Errno> {
        let target = directory.join(self.name.as_deref().unwrap_or_default());
        mkdir(&target, Mode::from_bits_truncate(0o755))?;
        mount_one(self.kind, &target, &self.data)
    }
}

fn mount_one(kind: &str, target: &Path, data: &str) -> Result<(), Errno> {
    mount(Some(kind), target, Some(kind), FLAGS | MsFlags::MS_RDONLY, Some(data))
}

fn part(mounted: &Mounted) -> Part {
    let (kind, name) = match mounted.version {
        Version::V1 => ("cgroup", mounted.names.join(",")),
        Version::V2 => ("cgroup2", "unified".to_owned()),
    };
    Part { kind, name: Some(name), data: mounted.names.join(",") }
}

impl Cgroups {
    /// Where values of the container stand that belong to a controller, or to v2 itself: the cgroup that holds its processes,
    /// and those around it. Where it has none of its own, it is in that of the launcher.
    pub(crate) fn levels(&self, controller: Option<Controller>) -> Option<(Version, Vec<PathBuf>)> {
        let is_meant = |mounted: &Mounted| match controller {
            Some(controller) => mounted.controllers.contains(&controller),
            None => mounted.version == Version::V2,
        };
        let own = self.hierarchies.iter().map(|own| (&own.mounted, own.container().path()));
        let launchers = self.refused.iter().map(|(mounted, _)| (mounted, mounted.own.as_path()));
        let (mounted, innermost) = own.chain(launchers).find(|(mounted, _)| is_meant(mounted))?;
        let levels = innermost.ancestors().take_while(|level| level.starts_with(&mounted.root));
        Some((mounted.version, levels.map(Path::to_owned).collect()))
    }

    /// Whether the container shares its cgroups with a daemon.
    pub(crate) fn has_daemon(&self) -> bool {
        self.hierarchies.iter().any(|hierarchy| hierarchy.directory(Place::Daemon).is_some())
    }
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
        assert_eq!(View::of(alone.iter()), Some(View(vec![Part { kind: "cgroup2", name: None, data: String::new() }])));
        assert_eq!(View::of([].iter()), None);
    }

    #[test]
    fn several_lie_beside_each_other() {
        let several = [mounted(Version::V1, &["cpu", "cpuacct"]), mounted(Version::V2, &[])];
        let expected = [
            Part { kind: "cgroup", name: Some("cpu,cpuacct".to_owned()), data: "cpu,cpuacct".to_owned() },
            Part { kind: "cgroup2", name: Some("unified".to_owned()), data: String::new() },
        ];
        assert_eq!(View::of(several.iter()), Some(View(expected.to_vec())));
    }
}
