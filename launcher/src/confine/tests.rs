use clap::Parser as _;

use super::*;
use crate::options::Options;

fn options(arguments: &[&str]) -> Result<ConfineOptions, String> {
    let words = ["rlaunch"].iter().chain(arguments).chain(&["sh"]);
    Options::try_parse_from(words).map(|options| options.confine).map_err(|error| error.to_string())
}

fn bounding(arguments: &[&str], available: Capabilities) -> Capabilities {
    let surroundings = Surroundings { capabilities: available, ..Surroundings::default() };
    bounding_set(&options(arguments).unwrap(), &surroundings).0
}

fn set(names: &[&str]) -> Capabilities {
    names.iter().fold(Capabilities::NONE, |set, name| set.with(Capabilities::named(name)))
}

#[test]
fn names_win_over_all() {
    let all = Capabilities::ALL;
    let default = Capabilities::docker().without(set(&["MKNOD"]));
    assert_eq!(bounding(&[], all), default);
    assert_eq!(bounding(&["--cap-add=SYS_TIME", "--cap-drop=CAP_CHOWN"], all), {
        default.with(set(&["SYS_TIME"])).without(set(&["CHOWN"]))
    });
    assert_eq!(bounding(&["--cap-drop=ALL"], all), Capabilities::NONE);
    assert_eq!(bounding(&["--cap-drop=all", "--cap-add=kill"], all), set(&["KILL"]));
    assert_eq!(bounding(&["--cap-add=ALL", "--cap-drop=SYS_ADMIN"], all), all.without(set(&["SYS_ADMIN"])));
    assert_eq!(bounding(&["--cap-add=ALL", "--cap-drop=ALL"], all), Capabilities::NONE);
    assert_eq!(bounding(&["--privileged"], all), all);
}

#[test]
fn nodes_can_be_made_once_a_list_of_devices_is_enforced() {
    let nodes = set(&["MKNOD"]);
    for (arguments, has_before, has_then) in [
        (&[] as &[&str], false, true),
        (&["--cap-drop=MKNOD"], false, false),
        (&["--cap-drop=ALL"], false, false),
        (&["--cap-drop=ALL", "--cap-add=KILL"], false, false),
        (&["--cap-add=MKNOD"], true, true),
        (&["--cap-drop=ALL", "--cap-add=MKNOD"], true, true),
        (&["--cap-add=ALL", "--cap-drop=MKNOD"], false, false),
    ] {
        let mut confinement = decide(arguments, StandardStreams::default(), false);
        assert!(confinement.devices_in_dev_only);
        assert_eq!(confinement.bounding.contains(nodes), has_before, "{arguments:?}");
        confinement.rely_on_device_list();
        assert!(!confinement.devices_in_dev_only);
        assert_eq!(confinement.bounding.contains(nodes), has_then, "{arguments:?}");
    }
    let available = set(&["CHOWN"]);
    let surroundings = Surroundings { capabilities: available, ..Surroundings::default() };
    let options = ConfineOptions::default();
    let mut alone = Confinement::decide(&options, &surroundings, StandardStreams::default(), false).unwrap();
    alone.rely_on_device_list();
    assert_eq!(alone.bounding, available);
}

#[test]
fn nothing_is_given_that_the_launcher_lacks() {
    let available = set(&["CHOWN", "KILL"]);
    assert_eq!(bounding(&[], available), available);
    assert_eq!(bounding(&["--privileged"], available), available);
    assert_eq!(bounding(&["--cap-add=SYS_TIME"], available), available);
}

fn decide(arguments: &[&str], streams: StandardStreams, gets_terminal: bool) -> Confinement {
    let surroundings = Surroundings { capabilities: Capabilities::ALL, ..Surroundings::default() };
    Confinement::decide(&options(arguments).unwrap(), &surroundings, streams, gets_terminal).unwrap()
}

#[test]
fn the_last_security_option_counts() {
    let none = StandardStreams::default();
    assert!(decide(&[], none, false).no_new_privileges);
    assert!(!decide(&["--security-opt=no-new-privileges=false"], none, false).no_new_privileges);
    assert!(!decide(&["--privileged"], none, false).no_new_privileges);
    assert!(decide(&["--privileged", "--security-opt=no-new-privileges"], none, false).no_new_privileges);
    assert_eq!(decide(&["--privileged"], none, false).filtering, Filtering::Nothing);
    assert_eq!(decide(&["--security-opt=seccomp=unconfined"], none, false).filtering, Filtering::Nothing);
    let back = ["--security-opt=seccomp=unconfined", "--security-opt=seccomp=builtin"];
    assert_eq!(decide(&back, none, false).filtering, decide(&[], none, false).filtering);
}

#[test]
fn who_shares_the_callers_terminal_may_not_type_into_it() {
    let input = StandardStreams { input: true, ..StandardStreams::default() };
    let (shared, own) = (decide(&[], input, false).filtering, decide(&[], input, true).filtering);
    assert_ne!(shared, own);
    assert_eq!(own, decide(&[], StandardStreams::default(), false).filtering);
}

#[test]
fn what_was_added_is_kept_by_a_user_who_is_not_root() {
    let none = StandardStreams::default();
    let added = ["--user=1000", "--cap-add=NET_ADMIN"];
    assert_eq!(decide(&added, none, false).ambient, set(&["NET_ADMIN"]));
    assert_eq!(decide(&["--user=1000"], none, false).ambient, Capabilities::NONE);
    // Further commands may have another user.
    assert_eq!(decide(&["--cap-add=NET_ADMIN"], none, false).ambient, set(&["NET_ADMIN"]));
    let dropped = ["--cap-add=NET_ADMIN", "--cap-drop=NET_ADMIN"];
    assert_eq!(decide(&dropped, none, false).ambient, Capabilities::NONE);
}

#[test]
fn init_can_be_left_out_in_two_ways() {
    for (arguments, init) in [
        (&[] as &[&str], true),
        (&["--init"], true),
        (&["--init=true"], true),
        (&["--init=false"], false),
        (&["--no-init"], false),
        (&["--no-init", "--init"], true),
    ] {
        assert_eq!(decide(arguments, StandardStreams::default(), false).init, init, "{arguments:?}");
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    for argument in [
        "--user=",
        "--cap-add=SYS_EVERYTHING",
        "--security-opt=label=disable",
        "--security-opt=seccomp=",
        "--ulimit=nofile",
        "--oom-score-adj=1001",
        "--device=/dev/kvm:/etc/kvm",
        "--workdir=relative",
        "--hostname=-x",
        "--hostname=a b",
        "--init=maybe",
    ] {
        assert!(options(&[argument]).is_err(), "{argument}");
    }
}
