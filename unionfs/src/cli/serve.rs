//! The life of a mount: open the branches, mount, serve, and leave nothing behind.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::exit;
use std::sync::Arc;
use std::time::Instant;

use nix::mount::MsFlags;
use unionfs::branch::hold::BranchId;
use unionfs::control::client::ask_to_give_way;
use unionfs::control::{self, BranchSpace, Control, Statistics, Status, Text};
use unionfs::fs::Union;
use unionfs::fuse::{Counts, Server};
use unionfs::mount::holders::{Holder, holder};
use unionfs::mount::{self, DeviceNumber, MountOptions, Mounted, Target};
use unionfs::options::{Options, words};

use super::mount::Request;
use super::notify::Manager;
use super::{Failure, daemon, log, signals};

/// What a mount that serves has outside of the union.
#[derive(Debug)]
struct Serving {
    /// Nothing where who started us has mounted, and has not said where.
    mounted: Option<Mounted>,
    /// How it is called in messages.
    place: PathBuf,
    control: Option<Control>,
    counts: Arc<Counts>,
    manager: Manager,
}

/// Serves the union until it is unmounted. What fails on the way leaves nothing mounted.
pub(super) fn serve(request: &Request, readiness: daemon::Readiness) -> Result<(), Failure> {
    readiness.leave_session()?;
    // a daemon's directory is another one soon
    let place = std::path::absolute(&request.target)?;
    let log = log::open(&request.log, &place, readiness == daemon::Readiness::Nobody)?;
    daemon::prepare()?;
    signals::block()?;
    let options = request.mount_options();
    let (union, device, mounted) = mount(request, &options)?;
    let server = Server::new(Arc::clone(&union), device)
        .map_err(|error| format!("the kernel does not start the mount: {error}"))?;
    if let Some(mounted) = &mounted {
        mounted.check()?;
        mount::read_further_ahead(mounted.device());
    }
    let control = mounted.as_ref().and_then(|mounted| open_control(request, mounted, &server, union));
    let manager = request.manager.clone();
    let serving = Arc::new(Serving { mounted, place, control, counts: server.counts(), manager });
    readiness.tell(log)?;
    if readiness == daemon::Readiness::Nobody {
        serving.manager.ready();
    }
    signals::watch(Arc::clone(&serving))?;
    let ended = server.run();
    serving.finish(ended)
}

/// Opens the branches and mounts them, where that is not done yet.
fn mount(request: &Request, options: &MountOptions) -> Result<(Arc<Union>, OwnedFd, Option<Mounted>), Failure> {
    let noatime = options.flags.contains(MsFlags::MS_NOATIME);
    let options_of_union = Options { noatime, ..request.options.clone() };
    let open = || Union::open_asking(&request.branches, &options_of_union, &ask_to_give_way);
    if let Some(device) = &request.device {
        return Ok((open()?, device.try_clone()?, None));
    }
    // refused before a branch is touched or waited for
    let target = Target::check(&request.target, options)?;
    let union = open()?;
    let (device, mounted) = mount::mount(target, options)?;
    if options.flags.contains(MsFlags::MS_RDONLY) {
        union.is_mounted_read_only();
    }
    Ok((union, device, Some(mounted)))
}

/// A mount without a control socket is still a mount; `runionfs show` then says that it has none.
fn open_control(request: &Request, mounted: &Mounted, server: &Server, union: Arc<Union>) -> Option<Control> {
    let counts = server.counts();
    let status = Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        mountpoint: Text::from(mounted.target().as_os_str()),
        branches: request.branches.iter().map(|branch| Text::from(branch.to_text().as_os_str())).collect(),
        options: words::print(&request.options).iter().map(|word| Text::from(word.as_os_str())).collect(),
        features: server.features(),
        requests: Vec::new(),
    };
    let (begun, device) = (Instant::now(), mounted.device());
    let answer = move |asked| match asked {
        control::Request::Show => Status { requests: counts.told(), ..status.clone() }.to_line(),
        control::Request::Stats => statistics(&status, &counts, &union, begun).to_line(),
        control::Request::Flush => {
            union.collect_writes();
            control::to_line(&union.flush_links()?)
        }
        control::Request::Holds(branch) => control::to_line(&union.holds(branch)),
        control::Request::GiveWay(branch) => {
            give_way(&union, branch, device)?;
            tracing::warn!(
                "unmounted, and in use: the branches are another mount's now, and nothing can be changed here"
            );
            control::to_line(&())
        }
    };
    match Control::open(device, answer) {
        Ok(control) => Some(control),
        Err(error) => {
            tracing::info!("no control socket: {error}");
            None
        }
    }
}

/// Lets the branches go where nobody can reach the mount any more.
fn give_way(union: &Union, branch: BranchId, device: DeviceNumber) -> io::Result<()> {
    let refused = |why: String| Err(io::Error::other(why));
    match holder(device)? {
        _ if !union.holds(branch) => refused("which does not hold it".into()),
        Holder::Ours(path) => refused(format!("at {}", path.display())),
        Holder::Other(process, path) => {
            refused(format!("at {} in the mount namespace of process {process}", path.display()))
        }
        Holder::Unknown(process) => {
            refused(format!("which process {process} may have, whose table of mounts cannot be read"))
        }
        Holder::Hidden => refused("which processes may have that /proc hides (hidepid=)".into()),
        Holder::Nobody => union.give_way().map_err(io::Error::other),
    }
}

fn statistics(status: &Status, counts: &Counts, union: &Union, begun: Instant) -> Statistics {
    let (read_bytes, written_bytes) = counts.carried();
    let spaces = status.branches.iter().cloned().zip(union.spaces());
    Statistics {
        version: status.version.clone(),
        pid: status.pid,
        mountpoint: status.mountpoint.clone(),
        uptime_milliseconds: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        operations: counts.operations(),
        read_bytes,
        written_bytes,
        tally: union.tally(),
        branches: spaces.map(|(branch, space)| BranchSpace::new(branch, space)).collect(),
    }
}

impl Serving {
    /// The event loops have ended: by themselves, when the mount was gone, or by a failure.
    fn finish(&self, ended: io::Result<()>) -> Result<(), Failure> {
        self.manager.stopping();
        self.remove_socket();
        let Err(error) = ended else {
            // what is at the path by now is not ours
            self.mounted.iter().for_each(Mounted::release);
            return Ok(());
        };
        tracing::error!("cannot serve any more: {error}");
        if let Some(Err(error)) = self.mounted.as_ref().map(Mounted::unmount) {
            tracing::error!("cannot unmount {}: {error}", self.place.display());
        }
        self.mounted.iter().for_each(Mounted::release);
        Err(format!("cannot serve any more: {error}").into())
    }

    fn remove_socket(&self) {
        if let Some(Err(error)) = self.control.as_ref().map(Control::remove) {
            tracing::warn!("cannot remove the control socket: {error}");
        }
    }
}

impl signals::Ending for Serving {
    fn tell(&self) {
        let counts = self.counts.told();
        let requests: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let requests = if requests.is_empty() { "none".to_owned() } else { requests.join(", ") };
        // at a level that is always told, for somebody has asked
        tracing::warn!("{}: requests: {requests}", self.place.display());
    }

    fn ask(&self) -> bool {
        let target = self.place.display();
        self.manager.stopping();
        match self.mounted.as_ref().map(Mounted::unmount) {
            Some(Ok(())) => true,
            // whose it is has mounted it, and unmounts it
            None => false,
            Some(Err(error)) => {
                tracing::error!("cannot unmount {target}: {error}; it is left without its daemon");
                false
            }
        }
    }

    fn force(&self) -> ! {
        self.remove_socket();
        exit(1)
    }
}
