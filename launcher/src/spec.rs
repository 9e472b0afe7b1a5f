//! What is to be started: the options and what they leave open, decided, as plain values.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use unionfs::options::{self, BranchSpec, Whiteout};

use crate::cgroup::limits::Limits;
use crate::cgroup::view::View;
use crate::confine::{ConfineOptions, Confinement, set_variables};
use crate::failure::{Doing as _, Failure};
use crate::host::{Host, StandardStreams};
use crate::idmap::IdMaps;
use crate::mount_table::Submount;
use crate::namespace::{NamespaceOptions, Network, Share};
use crate::network::OwnFile;
use crate::network::publish::Published;
use crate::options::{Options, TopOptions, When};
use crate::proc_view::ProcView;
use crate::volume::VolumeOptions;

/// Where commands are looked for with `--rootfs`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_HOSTNAME: &str = "rlaunch";
/// HOST_NAME_MAX of Linux; see gethostname(2).
const HOSTNAME_LENGTH: usize = 64;

/// One container, before it is known how to make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// What becomes `/`.
    pub root: Root,
    /// The command and its arguments, never empty.
    pub command: Vec<CString>,
    /// `NAME=VALUE`, all of it.
    pub environment: Vec<CString>,
    /// Where the command starts, as an absolute path in the container.
    pub directory: PathBuf,
    /// The host name; the host's own where there is none.
    pub hostname: Option<OsString>,
    /// Which namespaces it has of its own.
    pub namespaces: NamespaceOptions,
    /// What the root holds beside its own files.
    pub volumes: VolumeOptions,
    /// Who its users are, where it has a user namespace that is made with it.
    pub id_maps: Option<IdMaps>,
    /// Ports of this machine that lead into it.
    pub published: Vec<Published>,
    /// Files in `/etc` of its own.
    pub files: Vec<OwnFile>,
    /// Which standard streams are to be a terminal of the container's own; none, when it gets no terminal.
    pub terminal: Option<StandardStreams>,
    /// What it may use of the machine.
    pub limits: Limits,
    /// What it sees of its cgroups; nothing before they are made.
    pub cgroups: Option<View>,
    /// What `/proc` tells it of the machine; the machine's own where there is none, and nothing before its cgroups are made.
    pub proc_view: Option<ProcView>,
    /// The files by which it joins those that it is not started in.
    pub joins: Vec<PathBuf>,
    /// Whether the working directory was asked for, and so is made where it is missing.
    pub makes_directory: bool,
    /// What the command may do.
    pub confinement: Confinement,
}

/// What becomes `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// A directory tree, or a mounted union.
    Tree(PathBuf),
    /// A union of directories, the top first.
    Branches(Vec<BranchSpec>),
    /// A union of what is written over an image.
    Image {
        /// The unpacked layers, the topmost first; never empty.
        layers: Vec<PathBuf>,
        /// Where it wants directories that are not part of what is written over it.
        volumes: Vec<PathBuf>,
        /// Where it is kept what is written.
        top: Top,
    },
    /// A throw-away copy of the host.
    HostCopy {
        /// What is mounted below the host's `/`, parents first.
        submounts: Vec<Submount>,
        /// Where it is kept what is written.
        top: Top,
        /// Files of the host that lie where the container has a fresh file system, with their content.
        files: Vec<(PathBuf, Vec<u8>)>,
    },
}

/// Where a copy of the host keeps what is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Top {
    /// On disk, until the container ends.
    OnDisk,
    /// In memory, of this size as tmpfs takes it, until the container ends.
    InMemory(String),
    /// In a directory, for the next container.
    Kept {
        /// The directory.
        path: PathBuf,
        /// Whether it may be one that others can enter.
        force: bool,
    },
}

impl Spec {
    /// Decides what the options leave open.
    ///
    /// # Errors
    /// Where a word cannot be passed to a program.
    pub fn new(options: Options, host: Host) -> Result<Spec, Failure> {
        let command = command(options.confine.entrypoint.as_ref(), options.command)?;
        let terminal = match options.streams.tty {
            When::Auto => host.terminals.wants_terminal().then_some(host.terminals),
            When::Always => Some(StandardStreams { input: true, output: true, error: true }),
            When::Never => None,
        };
        let mut limits = Limits::new(options.limits)?;
        let mut confinement =
            Confinement::decide(&options.confine, &host.surroundings, host.terminals, terminal.is_some())?;
        let variables = host.surroundings.variables.clone();
        let root = match (options.rootfs, options.branches) {
            (Some(tree), _) => Root::Tree(tree),
            (None, Some(list)) => Root::Branches(branches(&list)?),
            (None, None) if host.image.is_some() => {
                let layers = host.image.iter().flat_map(|image| image.layers.clone()).collect();
                let volumes = host.image.iter().flat_map(|image| image.volumes.clone()).collect();
                Root::Image { layers, volumes, top: top(options.top, &mut limits)? }
            }
            (None, None) => {
                let submounts = if options.no_submounts { Vec::new() } else { host.submounts.clone() };
                Root::HostCopy { submounts, top: top(options.top, &mut limits)?, files: host.files.clone() }
            }
        };
        let (mut environment, directory, hostname) = match &root {
            Root::HostCopy { .. } => (host.environment, host.directory.unwrap_or_else(|| "/".into()), None),
            Root::Tree(tree) => (clean_environment(&host), "/".into(), Some(hostname_of(tree))),
            Root::Image { .. } => {
                let name = host.image.as_ref().map(|image| hostname_of(Path::new(&image.short_name)));
                (clean_environment(&host), "/".into(), name)
            }
            Root::Branches(branches) => {
                let top = branches.first().map(|branch| hostname_of(&branch.path));
                (clean_environment(&host), "/".into(), top)
            }
        };
        if let (Root::HostCopy { .. }, None) = (&root, options.confine.umask) {
            confinement.umask = host.umask;
        }
        set_variables(&mut environment, variables);
        let environment = environment.into_iter().map(assignment).collect::<Result<Vec<_>, _>>()?;
        let (namespaces, network) = (options.namespaces, options.network);
        if (network.publish_all || !network.publish.is_empty()) && namespaces.net != Network::Pasta {
            return Err(Failure::new("--publish is for a network of the container's own").remedy("add --net pasta"));
        }
        let ConfineOptions { workdir, hostname: name, .. } = options.confine;
        let makes_directory = workdir.is_some();
        let (directory, hostname) = (workdir.unwrap_or(directory), name.or(hostname));
        let hostname = hostname.filter(|_| namespaces.uts == Share::Private);
        let name = hostname.as_deref();
        let files = match &root {
            Root::HostCopy { .. } => network.files_over_the_hosts(&host.names, namespaces.net, name),
            Root::Tree(_) | Root::Branches(_) | Root::Image { .. } => network.files(&host.names, namespaces.net, name),
        };
        let volumes = options.volumes;
        volumes.check()?;
        let (cgroups, proc_view, joins) = (None, None, Vec::new());
        let published = network.publish;
        let id_maps = namespaces.id_maps()?;
        Ok(Spec {
            root,
            command,
            environment,
            directory,
            hostname,
            namespaces,
            volumes,
            id_maps,
            published,
            files,
            terminal,
            limits,
            cgroups,
            proc_view,
            joins,
            makes_directory,
            confinement,
        })
    }
}

/// An empty entry point is none, as for docker.
fn command(entry_point: Option<&OsString>, words: Vec<OsString>) -> Result<Vec<CString>, Failure> {
    let entry_point = entry_point.filter(|program| !program.is_empty()).cloned();
    let command = entry_point.into_iter().chain(words).map(c_string).collect::<Result<Vec<_>, _>>()?;
    match command.is_empty() {
        true => Err(Failure::new("there is no command to run").remedy("give one behind the options")),
        false => Ok(command),
    }
}

fn top(options: TopOptions, limits: &mut Limits) -> Result<Top, Failure> {
    Ok(match (options.keep, options.tmpfs_top) {
        (Some(path), _) => {
            let path = std::path::absolute(&path).doing(&format!("use {}", path.display()))?;
            Top::Kept { path, force: options.force }
        }
        (None, Some(size)) => Top::InMemory(limits.keep_in_memory(size)),
        (None, None) => Top::OnDisk,
    })
}

fn branches(list: &OsStr) -> Result<Vec<BranchSpec>, Failure> {
    let doing = format!("use the branches {}", list.display());
    let branches =
        options::branches::parse(list).and_then(|branches| options::branches::settle(branches, Whiteout::Wh));
    let mut branches = branches.map_err(|error| Failure::because(&doing, error))?;
    for branch in &mut branches {
        branch.path = std::path::absolute(&branch.path).doing(&doing)?;
    }
    Ok(branches)
}

fn clean_environment(host: &Host) -> Vec<(OsString, OsString)> {
    let mut environment = vec![("PATH".into(), DEFAULT_PATH.into()), ("HOME".into(), "/root".into())];
    environment.extend(host.environment.iter().find(|(name, _)| name == "TERM").cloned());
    environment
}

/// The name of the directory, as far as it can be a host name.
fn hostname_of(tree: &Path) -> OsString {
    let is_valid = |name: &&OsStr| {
        let bytes = name.as_bytes();
        let valid = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        bytes.len() <= HOSTNAME_LENGTH
            && bytes.iter().all(valid)
            && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
    };
    tree.file_name().filter(is_valid).unwrap_or(OsStr::new(DEFAULT_HOSTNAME)).to_owned()
}

fn assignment((name, value): (OsString, OsString)) -> Result<CString, Failure> {
    let mut text = name;
    text.push("=");
    text.push(value);
    c_string(text)
}

/// A word for a program.
pub(crate) fn c_string(text: OsString) -> Result<CString, Failure> {
    CString::new(text.into_vec()).map_err(|error| Failure::because("pass a word with a zero byte to a program", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount_table::Shown;
    use crate::options::Command;
    use nix::mount::MsFlags;

    fn host() -> Host {
        Host {
            environment: vec![("TERM".into(), "vt100".into()), ("SECRET".into(), "1".into())],
            directory: Some("/home/me".into()),
            umask: "027".parse().unwrap(),
            terminals: StandardStreams::default(),
            submounts: vec![home()],
            names: crate::network::Names::default(),
            files: Vec::new(),
            surroundings: crate::confine::Surroundings::default(),
            image: None,
        }
    }

    fn home() -> Submount {
        Submount { path: "/home".into(), shown: Shown::Union(MsFlags::MS_NOSUID) }
    }

    fn spec(rootfs: Option<&str>, host: Host) -> Spec {
        Spec::new(Options { rootfs: rootfs.map(PathBuf::from), ..options(&[]) }, host).unwrap()
    }

    fn options(words: &[&str]) -> Options {
        let words = words.iter().copied().chain(["sh"]).map(OsString::from);
        let Ok(Command::Run(options)) = crate::options::parse(words) else { panic!("not understood") };
        *options
    }

    #[test]
    fn a_tree_starts_clean() {
        let spec = spec(Some("/srv/bookworm"), host());
        let environment: Vec<_> = spec.environment.iter().map(|text| text.to_str().unwrap()).collect();
        assert_eq!(environment, [&format!("PATH={DEFAULT_PATH}"), "HOME=/root", "TERM=vt100"]);
        assert_eq!(spec.directory, Path::new("/"));
        assert_eq!(spec.hostname, Some("bookworm".into()));
        assert_eq!(spec.root, Root::Tree("/srv/bookworm".into()));
    }

    #[test]
    fn a_copy_of_the_host_takes_over_environment_and_directory() {
        let spec = spec(None, host());
        assert_eq!(spec.environment, [c"TERM=vt100".to_owned(), c"SECRET=1".to_owned()]);
        assert_eq!(spec.directory, Path::new("/home/me"));
        assert_eq!(spec.hostname, None);
        assert_eq!(spec.root, Root::HostCopy { submounts: vec![home()], top: Top::OnDisk, files: Vec::new() });
        let without = Spec::new(options(&["--no-submounts"]), host()).unwrap();
        assert_eq!(without.root, Root::HostCopy { submounts: Vec::new(), top: Top::OnDisk, files: Vec::new() });
    }

    #[test]
    fn branches_start_clean_and_are_found_from_everywhere() {
        let spec = Spec::new(options(&["--branches=web=rw:/img=ro+wh"]), host()).unwrap();
        let Root::Branches(branches) = spec.root else { panic!("no branches: {:?}", spec.root) };
        let here = std::env::current_dir().unwrap();
        assert_eq!(
            branches.iter().map(|branch| &*branch.path).collect::<Vec<_>>(),
            [&*here.join("web"), Path::new("/img")]
        );
        assert_eq!(spec.environment.len(), 3, "{:?}", spec.environment);
        assert_eq!((spec.directory, spec.hostname), ("/".into(), Some("web".into())));
        let failure = Spec::new(options(&["--branches=a:a"]), host()).unwrap_err().to_string();
        assert_eq!(failure, "cannot use the branches a:a: branch a is given twice");
    }

    #[test]
    fn a_terminal_is_made_only_where_input_and_output_are_one() {
        let terminal = |input, output, error| {
            spec(None, Host { terminals: StandardStreams { input, output, error }, ..host() }).terminal.is_some()
        };
        assert!(terminal(true, true, true));
        assert!(terminal(true, true, false));
        assert!(!terminal(true, false, true));
        assert!(!terminal(false, true, true));
    }

    #[test]
    fn a_terminal_can_be_asked_for_and_refused() {
        let all = StandardStreams { input: true, output: true, error: true };
        for (word, terminals, expected) in [
            ("--tty", StandardStreams::default(), Some(all)),
            ("--tty=never", all, None),
            ("--tty=auto", all, Some(all)),
            ("--tty=auto", StandardStreams::default(), None),
        ] {
            assert_eq!(Spec::new(options(&[word]), Host { terminals, ..host() }).unwrap().terminal, expected, "{word}");
        }
    }

    #[test]
    fn host_names_are_valid() {
        for (tree, expected) in [
            ("/srv/web-1.example", "web-1.example"),
            ("/", DEFAULT_HOSTNAME),
            ("/srv/with space", DEFAULT_HOSTNAME),
            ("/srv/-x", DEFAULT_HOSTNAME),
            ("/srv/ünïcode", DEFAULT_HOSTNAME),
        ] {
            assert_eq!(hostname_of(Path::new(tree)), expected, "{tree}");
        }
        assert_eq!(hostname_of(Path::new(&"x".repeat(65))), DEFAULT_HOSTNAME);
    }
}
