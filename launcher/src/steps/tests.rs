use super::*;
use crate::confine::{Capabilities, ConfineOptions, Surroundings};
use crate::namespace::NamespaceOptions;
use crate::proc_view::Way;
use crate::spec::Top;

fn spec(root: Root) -> Spec {
    Spec {
        root,
        command: vec![c"sh".to_owned()],
        environment: Vec::new(),
        directory: "/work".into(),
        hostname: Some("box".into()),
        namespaces: NamespaceOptions::default(),
        volumes: VolumeOptions::default(),
        id_maps: None,
        published: Vec::new(),
        files: Vec::new(),
        terminal: None,
        limits: crate::cgroup::limits::Limits::default(),
        cgroups: None,
        proc_view: None,
        joins: Vec::new(),
        makes_directory: false,
        confinement: confinement(ConfineOptions::default()),
    }
}

fn confinement(options: ConfineOptions) -> Confinement {
    let surroundings =
        Surroundings { capabilities: Capabilities::ALL, masked: vec!["/proc/kcore".into()], ..Surroundings::default() };
    Confinement::decide(&options, &surroundings, StandardStreams::default(), false).unwrap()
}

fn tree() -> Spec {
    spec(Root::Tree("/srv/root".into()))
}

fn copy() -> Spec {
    let files = vec![("/run/systemd/resolve/stub-resolv.conf".into(), b"nameserver 127.0.0.53\n".to_vec())];
    let submounts = vec![
        Submount { path: "/home".into(), shown: Shown::Union(MsFlags::MS_NOSUID) },
        Submount { path: "/home/me".into(), shown: Shown::FarAway("nfs".into()) },
    ];
    spec(Root::HostCopy { submounts, top: Top::OnDisk, files })
}

fn actions(spec: &Spec) -> Vec<Action> {
    plan(spec).into_iter().map(|step| step.action).collect()
}

#[track_caller]
fn position(spec: &Spec, wanted: impl Fn(&Action) -> bool) -> usize {
    let found = actions(spec).iter().position(wanted);
    found.unwrap_or_else(|| panic!("not in the plan: {:?}", actions(spec)))
}

fn mounts_at(path: &'static str) -> impl Fn(&Action) -> bool {
    move |action| matches!(action, Action::Mount(file_system) if file_system.at == path)
}

#[test]
fn nothing_is_mounted_before_the_mounts_are_separated_and_nothing_is_made_after_the_root_is_entered() {
    for spec in [tree(), copy()] {
        let enter = position(&spec, |action| *action == Action::EnterRoot);
        assert_eq!(actions(&spec)[0], Action::Isolate);
        for (index, action) in actions(&spec).iter().enumerate() {
            let is_after = matches!(
                action,
                Action::EnterRoot
                    | Action::ChangeDirectory(_)
                    | Action::Restrict(_)
                    | Action::OpenTerminal(_)
                    | Action::Execute(..)
            );
            assert_eq!(index >= enter, is_after, "{action:?}");
        }
    }
}

#[test]
fn the_command_comes_last() {
    for spec in [tree(), copy()] {
        assert_eq!(actions(&spec).last(), Some(&Action::Execute(vec![c"sh".to_owned()], Vec::new())));
    }
}

#[test]
fn a_tree_gets_kernel_interfaces_and_keeps_its_own_run_and_tmp() {
    let mounted: Vec<_> = actions(&tree())
        .iter()
        .filter_map(|action| match action {
            Action::Mount(file_system) => Some(file_system.at),
            _ => None,
        })
        .collect();
    assert_eq!(mounted, ["/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"]);
}

#[test]
fn a_copy_of_the_host_has_fresh_run_and_tmp_over_its_submounts() {
    let spec = copy();
    let last_bind = position(&spec, |action| *action == Action::Bind("/home/me".into()));
    assert_eq!(
        position(&spec, |action| *action == Action::MountUnion("/home".into(), MsFlags::MS_NOSUID)) + 1,
        last_bind
    );
    for path in ["/run", "/tmp", "/proc", "/dev"] {
        assert!(position(&spec, mounts_at(path)) > last_bind, "{path}");
    }
}

#[test]
fn the_resolvers_file_is_made_once_run_is_there() {
    let spec = copy();
    let file = position(&spec, |action| matches!(action, Action::File(..)));
    assert!(position(&spec, mounts_at("/run")) < file);
    assert_eq!(actions(&spec)[file - 1], Action::Directory("/run/systemd/resolve".into(), 0o755));
}

#[test]
fn flags_of_file_systems_keep_devices_and_set_id_programs_out() {
    for step in plan(&copy()) {
        let Action::Mount(file_system) = step.action else { continue };
        assert!(file_system.flags.contains(MsFlags::MS_NOSUID), "{}", file_system.at);
        let holds_devices = matches!(file_system.at, "/dev" | "/dev/pts");
        assert_eq!(file_system.flags.contains(MsFlags::MS_NODEV), !holds_devices, "{}", file_system.at);
        assert_eq!(file_system.flags.contains(MsFlags::MS_RDONLY), file_system.at == "/sys", "{}", file_system.at);
    }
}

#[test]
fn volumes_have_no_devices_unless_a_list_of_them_is_enforced_or_they_were_asked_for() {
    let volumes = |spec: &Spec| -> Vec<Volume> {
        let volume = |action| if let Action::Volume(volume) = action { Some(volume) } else { None };
        actions(spec).into_iter().filter_map(volume).collect()
    };
    let mut spec = tree();
    let plain = Volume::new("/a".into(), "/b".into());
    let shared = Volume { propagation: Propagation::Shared, ..plain.clone() };
    spec.volumes.volume = vec![shared.clone(), plain.clone(), Volume { devices: true, ..plain.clone() }];
    let flags: Vec<_> = volumes(&spec).iter().map(|volume| (volume.propagation, volume.flags)).collect();
    let (nodev, private) = (MsFlags::MS_NODEV, Propagation::Private);
    // What is shared comes last, so that nothing is mounted in it.
    assert_eq!(flags, [(private, nodev), (private, MsFlags::empty()), (Propagation::Shared, nodev)]);
    spec.confinement.rely_on_device_list();
    assert!(volumes(&spec).iter().all(|volume| volume.flags.is_empty()));
    assert_eq!(actions(&spec)[..2], [Action::OpenShared(shared), Action::Isolate]);
}

#[test]
fn a_terminal_is_opened_right_before_the_command() {
    let streams = StandardStreams { input: true, output: true, error: false };
    let spec = Spec { terminal: Some(streams), ..tree() };
    let steps = actions(&spec);
    assert_eq!(steps[steps.len() - 2], Action::OpenTerminal(streams));
}

#[test]
fn statuses_tell_a_missing_command_from_one_that_cannot_run_and_from_our_own_failures() {
    let execute = must(Action::Execute(vec![c"x".to_owned()], Vec::new()));
    for (step, errno, status) in [
        (&execute, Errno::ENOENT, 127),
        (&execute, Errno::ENOTDIR, 127),
        (&execute, Errno::EACCES, 126),
        (&execute, Errno::ENOEXEC, 126),
        (&execute, Errno::ENOMEM, 126),
        (&execute, Errno::EAGAIN, 125),
        (&must(Action::EnterRoot), Errno::ENOENT, 125),
        (&must(Action::Isolate), Errno::EPERM, 125),
    ] {
        assert_eq!(step.failure(errno).status, status, "{:?} {errno}", step.action);
    }
}

#[test]
fn messages_say_what_was_being_done_and_what_helps() {
    let dev = must(file_system("tmpfs", "/dev", MsFlags::empty(), ""));
    let message = dev.failure(Errno::ELOOP).to_string();
    assert!(message.starts_with("cannot mount tmpfs at /dev of the container: "), "{message}");
    assert!(message.ends_with("replace it by a directory)"), "{message}");
    let cwd = may(Action::ChangeDirectory("/gone".into()), "starting in / instead");
    assert_eq!(
        cwd.warning(Errno::ENOENT),
        "cannot enter the working directory /gone: No such file or directory; starting in / instead"
    );
}

#[test]
fn what_is_told_of_limits_lies_over_proc_and_below_what_hides_it() {
    let place = |steps: &[Step], is_it: &dyn Fn(&Action) -> bool| steps.iter().position(|step| is_it(&step.action));
    for (way, is_mounted) in [(Way::Served, true), (Way::ServedIfPossible, true), (Way::Static, false)] {
        let steps = plan(&Spec { proc_view: Some(ProcView::example(way)), ..tree() });
        let mounted = place(&steps, &|action| matches!(action, Action::MountProcView(_)));
        assert_eq!(mounted.is_some(), is_mounted, "{way:?}");
        let is_needed = |action: &Action| *action == Action::MountProcView(true);
        assert_eq!(place(&steps, &is_needed).is_some(), way == Way::Served, "{way:?}");
        let proc = place(&steps, &|action| matches!(action, Action::Mount(one) if one.at == "/proc")).unwrap();
        let shown = place(&steps, &|action| matches!(action, Action::ShowProcView(_))).unwrap();
        let hidden = place(&steps, &|action| matches!(action, Action::Mask(_))).unwrap();
        let entered = place(&steps, &|action| *action == Action::EnterRoot).unwrap();
        assert!(proc < shown && shown < hidden && hidden < entered, "{way:?}");
        assert!(mounted.is_none_or(|mounted| proc < mounted && mounted < shown), "{way:?}");
        let young = Action::Clocks(ClockOffsets { monotonic: 0, boottime: -1000 });
        let clocks = steps.iter().find(|step| step.action == young).unwrap();
        assert!(clocks.otherwise.is_some(), "{way:?}");
    }
    let untold = plan(&tree());
    assert!(place(&untold, &|action| matches!(action, Action::ShowProcView(_) | Action::MountProcView(_))).is_none());
}
