//! The words of overlayfs as their callers write them.

use super::*;

fn read(argument: &str) -> Result<Overlay, OverlayError> {
    let mut overlay = Overlay::default();
    overlay.add(OsStr::new(argument))?;
    Ok(overlay)
}

fn paths(paths: &[&str]) -> Vec<PathBuf> {
    paths.iter().map(PathBuf::from).collect()
}

#[test]
fn what_podman_buildah_and_containerd_write_is_read() {
    let l = "/g/overlay/l";
    let run = read(&format!(
        "lowerdir={l}/A:{l}/B,upperdir=/g/c/diff,workdir=/g/c/work,volatile,uidmapping=:0:200000:65536,\
         gidmapping=:0:200000:65536,xattr_permissions=2,private"
    ))
    .unwrap();
    assert_eq!(run.lower, paths(&["/g/overlay/l/A", "/g/overlay/l/B"]));
    assert_eq!(run.upper, Some("/g/c/diff".into()));
    assert_eq!(run.words.options.workdir, Some("/g/c/work".into()));
    assert!(run.words.options.volatile);
    assert_eq!(run.words.options.keeping, Keeping::Owners);
    assert_eq!(run.words.options.ids.users.shown(7), 200_007);
    assert_eq!(run.words.options.ids.groups.kept(200_007), Some(7));
    assert_eq!(run.unknown, [""; 0]);
    assert_eq!(run.check(), Ok(()));

    let snapshotter =
        read("workdir=/s/3/work,upperdir=/s/3/fs,lowerdir=/s/2/fs:/s/1/fs,uidmapping=0:1000:1:1:100000:65536,dev,suid");
    assert_eq!(snapshotter.unwrap().lower, paths(&["/s/2/fs", "/s/1/fs"]));

    let layers = read(&format!("lowerdir={l}/X:{l}/X/../diff1:{l}/Y,private")).unwrap();
    assert_eq!(layers.lower[1], PathBuf::from("/g/overlay/l/X/../diff1"));
    assert_eq!((layers.upper, layers.words.options.workdir), (None, None));

    let labelled = read(r#"lowerdir=/a,context="system_u:object_r:container_file_t:s0:c1,c2",upperdir=/u"#).unwrap();
    assert_eq!(labelled.labels, [r#"context="system_u:object_r:container_file_t:s0:c1,c2""#]);
    assert_eq!(labelled.upper, Some("/u".into()));
}

#[test]
fn escapes_and_quotes_are_for_what_separates_and_for_nothing_else() {
    for (argument, expected) in [
        (r"lowerdir=/a\:b", &["/a:b"][..]),
        (r"lowerdir=/a\,b:/c", &["/a,b", "/c"]),
        (r#"lowerdir="/a,b:/c",ro"#, &["/a,b", "/c"]),
        (r#"lowerdir="/a,b:/c""#, &["/a,b", "/c"]),
        (r#"lowerdir="/a\"b""#, &["/a\"b"]),
        (r#"lowerdir="/a\\",ro"#, &[r"/a\"]),
        // a quotation mark that is a part of a path, and a backslash that is
        (r#"lowerdir=/a"b:/c"d,upperdir=/u"#, &["/a\"b", "/c\"d"]),
        (r#"lowerdir="/a:/b,upperdir=/u"#, &["\"/a", "/b"]),
        (r"lowerdir=/a\b:/c\", &[r"/a\b", r"/c\"]),
        (r"lowerdir=/a\\:/b", &[r"/a\", "/b"]),
        ("lowerdir=/a=b:/c d", &["/a=b", "/c d"]),
        ("lowerdir=relative/x:.:..", &["relative/x", ".", ".."]),
        ("lowerdir=/a,lowerdir=/b", &["/b"]),
    ] {
        assert_eq!(read(argument).unwrap().lower, paths(expected), "{argument}");
    }
}

#[test]
fn what_would_be_another_mount_is_refused() {
    for (argument, expected) in [
        ("lowerdir=", OverlayError::EmptyLower(1)),
        ("lowerdir=/a::/b", OverlayError::EmptyLower(2)),
        ("lowerdir=/a:", OverlayError::EmptyLower(2)),
        ("lowerdir=/a\0", OverlayError::NoPath("lowerdir")),
        ("upperdir=", OverlayError::NoPath("upperdir")),
        ("workdir", OverlayError::NoPath("workdir")),
        ("lowerdir=/a,br=/b", OverlayError::Twice("br".into())),
        ("lowerdir=/a,append:/b", OverlayError::Twice("append".into())),
        ("plugins=x", OverlayError::Unsupported("plugins")),
    ] {
        assert_eq!(read(argument), Err(expected), "{argument}");
    }
    for argument in [
        "uidmapping=0:1",
        "gidmapping=",
        "squash_to_uid=root",
        "xattr_permissions=3",
        "whiteout=no",
        "timeout=-1",
        "fsync=maybe",
        "threads=0",
        "ro=1",
    ] {
        assert!(read(argument).is_err(), "{argument}");
    }
    assert_eq!(read("upperdir=/u,workdir=/w").unwrap().check(), Err(OverlayError::NoLower));
    assert_eq!(read("lowerdir=/a,upperdir=/u").unwrap().check(), Err(OverlayError::NoWork));
}

#[test]
fn unknown_words_are_gathered_and_known_ones_have_their_effect() {
    let read =
        read("lowerdir=/a,bogus,bogus=2,other=x,x-systemd.automount,nofail,user=me,_netdev,redirect_dir=off").unwrap();
    assert_eq!(read.unknown, ["bogus", "other"]);
    let flags = |argument| super::tests::read(argument).unwrap().flags();
    assert_eq!(flags("ro,dev,suid"), MsFlags::MS_RDONLY | MsFlags::MS_NOATIME);
    assert_eq!(flags("relatime,nodev,sync"), MsFlags::MS_RELATIME | MsFlags::MS_NODEV | MsFlags::MS_SYNCHRONOUS);
    let options = |argument| super::tests::read(argument).unwrap().options(Whiteout::Wh);
    assert!(options("fsync=0").volatile && options("sync=0").volatile && !options("sync").volatile);
    assert_eq!(options("threaded=0").threads, Some(1));
    assert_eq!((options("timeout=0").udba, options("timeout=1000000000").udba), (Udba::Reval, Udba::None));
    assert_eq!(options("squash_to_root").ids.users.shown(99), 0);
    assert_eq!(options("ro").dirren, Dirren::Off);
    assert_eq!(super::tests::read("whiteout=aufs").unwrap().whiteout, Some(Whiteout::Wh));
}
