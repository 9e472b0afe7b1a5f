use super::*;
use proptest::prelude::*;

fn read(arguments: &[&str]) -> Result<Words, WordsError> {
    let mut words = Words::default();
    arguments.iter().try_for_each(|argument| words.add(OsStr::new(argument)))?;
    Ok(words)
}

#[test]
fn the_branches_of_all_words_are_one_string() {
    for (arguments, expected) in [
        (&["br=/a=rw:/b=ro"][..], "/a=rw:/b=ro"),
        (&["br:/a=rw:/b=ro"], "/a=rw:/b=ro"),
        (&["dirs=/a"], "/a"),
        (&["br=/a,append:/b"], "/a:/b"),
        (&["br=/a", "prepend=/b"], "/b:/a"),
        (&["append=/b"], "/b"),
        (&["prepend:/b"], "/b"),
        (&["br=/a", "br=/b"], "/b"),
        (&[r"br=/a\,b:/c\:d"], r"/a,b:/c\:d"),
        (&[r"br=/a\\\,b"], r"/a\\,b"),
        (&[r"br=/a\\,ro"], r"/a\\"),
    ] {
        assert_eq!(read(arguments).unwrap().branches.as_deref(), Some(OsStr::new(expected)), "{arguments:?}");
    }
}

#[test]
fn words_become_options() {
    let default = Options::default();
    for (argument, expected) in [
        ("", default.clone()),
        ("udba=none", default.clone()),
        ("udba=reval", Options { udba: Udba::Reval, ..default.clone() }),
        ("dirren", default.clone()),
        ("dirren=off", Options { dirren: Dirren::Off, ..default.clone() }),
        ("nodirren,dirren=on", default.clone()),
        ("volatile", Options { volatile: true, ..default.clone() }),
        (r"workdir=/w\,x", Options { workdir: Some("/w,x".into()), ..default.clone() }),
        ("threads=3", Options { threads: Some(3), ..default.clone() }),
        ("whiteout=overlay", Options { whiteout: Whiteout::Overlay, ..default.clone() }),
        ("whiteout=overlay,whiteout=wh", default.clone()),
        ("fsname=a=b", Options { fsname: Some("a=b".into()), ..default.clone() }),
        (
            "dio,xino=/x,dirperm1,nonempty,default_permissions,nofail,user,user=me,uhelper=udisks2,x-systemd.a=b,X-mount.mkdir",
            default.clone(),
        ),
    ] {
        assert_eq!(read(&[argument]).map(|words| words.options), Ok(expected), "{argument}");
    }
}

#[test]
fn words_become_flags() {
    for (argument, expected) in [
        ("ro", MsFlags::MS_RDONLY),
        ("ro,rw", MsFlags::empty()),
        ("nodev,nosuid,noexec", MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC),
        ("nodev,nosuid,dev,suid", MsFlags::empty()),
        ("noatime,nodiratime", MsFlags::MS_NOATIME | MsFlags::MS_NODIRATIME),
        ("noatime,relatime", MsFlags::MS_RELATIME),
        ("strictatime,noatime", MsFlags::MS_NOATIME),
        ("sync,dirsync,async", MsFlags::MS_DIRSYNC),
    ] {
        assert_eq!(read(&[argument]).map(|words| words.flags), Ok(expected), "{argument}");
    }
    assert!(read(&["allow_other"]).unwrap().allow_other);
    assert!(!read(&["ro"]).unwrap().allow_other);
}

#[test]
fn a_bad_word_is_one_clear_error() {
    for (argument, says) in [
        ("foo", "unknown option 'foo' (see 'runionfs mount --help')"),
        ("ro,foo=1", "unknown option 'foo'"),
        ("udba", "option 'udba' needs a value: udba=none|reval"),
        ("udba=maybe", "option 'udba=maybe': none and reval are known"),
        ("whiteout=dev", "option 'whiteout=dev': wh and overlay are known"),
        ("ro=1", "option 'ro' takes no value"),
        ("threads=0", "option 'threads=0': a number from 1 to 256 is expected"),
        ("threads=many", "a number from 1 to 256 is expected"),
        ("threads=99999999999999999999", "a number from 1 to 256 is expected"),
        ("workdir=", "a directory is expected"),
    ] {
        let error = read(&[argument]).expect_err(argument).to_string();
        assert!(error.contains(says), "{argument}: {error}");
    }
}

#[test]
fn every_word_is_known_once_and_helped() {
    let help = help();
    for word in WORDS {
        assert_eq!(WORDS.iter().filter(|other| other.name == word.name).count(), 1, "{}", word.name);
        assert!(help.contains(&word.usage()), "{}", word.name);
    }
}

proptest! {
    #[test]
    fn garbage_is_a_value_or_one_line(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Err(error) = Words::default().add(OsStr::from_bytes(&bytes)) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn a_comma_in_a_path_survives_both_escapes(path in "[a,:=\\\\]{1,12}") {
        let spec = crate::options::branches::parse(&printed(&path)).unwrap();
        let escaped = String::from_utf8(printed(&path).into_vec()).unwrap().replace(',', "\\,");
        let words = read(&[&format!("br={escaped},ro")]).unwrap();
        prop_assert_eq!(crate::options::branches::parse(&words.branches.unwrap()), Ok(spec));
        prop_assert_eq!(words.flags, MsFlags::MS_RDONLY);
    }
}

fn printed(path: &str) -> OsString {
    use crate::options::{Access, BranchSpec};
    BranchSpec {
        path: path.into(),
        access: Access::ReadOnly,
        whiteouts: false,
        overlay: false,
        init: false,
        nolwh: false,
    }
    .to_text()
}
