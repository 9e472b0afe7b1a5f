use super::*;

const PROGRAM: &str = "/usr/bin/runionfs";

/// As distributions have it.
const LONG: &str = "\
# Documentation
[storage]

# the driver
driver = \"overlay\" # said

graphroot = \"/srv/images\"
rootless_storage_path = \"$HOME/images\"

[storage.options]
additionalimagestores = [
  # \"/one\",
]

[storage.options.overlay]
# mount_program = \"/usr/bin/fuse-overlayfs\"
mountopt = \"nodev\"

[storage.options.thinpool]
# size = \"1G\"
";

#[test]
fn one_line_is_written_and_all_else_stays() {
    let with_ours = with(LONG, PROGRAM).unwrap();
    let expected = LONG.replace(
        "mountopt = \"nodev\"\n",
        "mountopt = \"nodev\"\n# by 'runionfs setup podman'\nmount_program = \"/usr/bin/runionfs\"\n",
    );
    assert_eq!(with_ours, expected);
    assert_eq!(with(&with_ours, PROGRAM).unwrap(), with_ours, "a second time");
    assert_eq!(program_of(&with_ours).as_deref(), Some(PROGRAM));
    assert_eq!(without(&with_ours).unwrap().as_deref(), Some(LONG));
    assert_eq!(without(LONG).unwrap().as_deref(), Some(LONG));
}

#[test]
fn what_was_named_before_comes_back() {
    let theirs = LONG.replace("mountopt = \"nodev\"\n", "# the best\nmount_program = \"/usr/bin/fuse-overlayfs\"\n");
    let ours = with(&theirs, "/a/first").unwrap();
    assert!(ours.contains("# the best\n# by 'runionfs setup podman'; before: mount_program = \"/usr/bin/fuse-overlayfs\"\nmount_program = \"/a/first\"\n"), "{ours}");
    let again = with(&ours, PROGRAM).unwrap();
    assert_eq!(again, ours.replace("/a/first", PROGRAM));
    assert_eq!(without(&again).unwrap(), Some(theirs.clone()));
    // what somebody else wrote is not ours to take away
    assert_eq!(without(&theirs).unwrap(), Some(theirs));
}

#[test]
fn tables_between_braces_become_lines_that_podman_reads() {
    for (text, lines) in [
        ("storage = {driver = \"overlay\"}\n", "[storage]\ndriver = \"overlay\"\n"),
        (
            "[storage]\ndriver = \"overlay\"\noptions = {overlay = {mountopt=\"nodev\"}, size = \"1G\"}\n",
            "[storage]\ndriver = \"overlay\"\n\n[storage.options]\nsize = \"1G\"\n\n[storage.options.overlay]\nmountopt = \"nodev\"\n",
        ),
    ] {
        let ours = with(text, PROGRAM).unwrap();
        assert!(!ours.contains('{') && ours.starts_with(lines), "{ours}");
        assert_eq!(program_of(&ours).as_deref(), Some(PROGRAM));
        assert_eq!(with(&ours, PROGRAM).unwrap(), ours, "a second time");
        assert_eq!(without(&ours).unwrap().as_deref(), Some(lines));
    }
}

#[test]
fn tables_are_made_where_there_are_none() {
    for (text, expected) in [
        (OF_USERS, "[storage]\ndriver = \"overlay\"\n\n[storage.options.overlay]\n"),
        ("", "[storage]\ndriver = \"overlay\"\n\n[storage.options.overlay]\n"),
        ("storage.driver = \"overlay\"\n", "storage.driver = \"overlay\"\n"),
        ("storage = { driver = \"overlay\" }\n", "[storage]\ndriver = \"overlay\"\n"),
        ("storage.driver = \"overlay\"\nstorage.options = { overlay = { x = 1 } }\n", "x = 1\n"),
        ("[storage.options]\nx = 1\n[other]\n", "x = 1\n"),
    ] {
        let made = with(text, PROGRAM).unwrap();
        assert!(made.contains(expected), "{text}: {made}");
        assert_eq!(program_of(&made).as_deref(), Some(PROGRAM), "{made}");
        assert_eq!(with(&made, PROGRAM).unwrap(), made);
        let back = without(&made).unwrap().unwrap();
        assert_eq!(program_of(&back), None, "{back}");
        assert!(!back.contains("runionfs"), "{back}");
    }
    assert_eq!(without(&with(OF_ROOT, PROGRAM).unwrap()).unwrap().as_deref(), Some(OF_ROOT));
}

#[test]
fn what_makes_no_sense_is_left_as_it_is() {
    for (text, says) in [
        ("[storage", "no TOML"),
        ("storage = 1\n", "storage is no table"),
        ("[storage]\noptions = 1\n", "options is no table"),
        ("[storage]\ndriver = \"vfs\"\n", "driver is vfs"),
    ] {
        let error = with(text, PROGRAM).unwrap_err().to_string();
        assert!(error.contains(says) && error.lines().count() == 1, "{text}: {error}");
    }
}

#[test]
fn the_difference_names_what_goes_and_what_comes() {
    let difference = |before, after| difference(Path::new("/c"), before, after);
    assert_eq!(difference(Some("a\nb\nc\n"), Some("a\nB\nb2\nc\n")), "--- /c\n+++ /c\n a\n-b\n+B\n+b2\n c\n");
    assert_eq!(difference(None, Some("a\n")), "--- /dev/null\n+++ /c\n+a\n");
    assert_eq!(difference(Some("a\n"), None), "--- /c\n+++ /dev/null\n-a\n");
    assert_eq!(difference(Some("a\na\n"), Some("a\n")), "--- /c\n+++ /c\n a\n-a\n");
    assert_eq!(difference(Some("a\n"), Some("a\n")), "");
}

#[test]
fn the_store_is_told_where_it_is_a_plain_path() {
    assert_eq!(store_of(LONG, false).as_deref(), Some("/srv/images"));
    assert_eq!((store_of(LONG, true), store_of("", false)), (None, None));
}

#[test]
fn the_program_of_overlay_counts_before_that_of_all_drivers() {
    let older = "[storage]\ndriver = \"overlay\"\n[storage.options]\nmount_program = \"/older\"\n";
    assert_eq!(program_of(older).as_deref(), Some("/older"));
    let with = with(older, "/ours").unwrap();
    assert_eq!(program_of(&with).as_deref(), Some("/ours"));
    let without = without(&with).unwrap().unwrap();
    assert_eq!(program_of(&without).as_deref(), Some("/older"));
}
