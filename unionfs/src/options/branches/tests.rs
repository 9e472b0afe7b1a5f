use super::*;
use proptest::prelude::*;

fn branch(path: &str, access: Access) -> BranchSpec {
    BranchSpec { path: path.into(), access, whiteouts: false, overlay: false, init: false, nolwh: false }
}

fn read(list: &str) -> Result<Vec<BranchSpec>, BranchesError> {
    parse(OsStr::new(list))
}

#[test]
fn branch_strings_are_read_as_written() {
    let (rw, ro, rr) = (Access::ReadWrite, Access::ReadOnly, Access::RealReadOnly);
    for (list, expected) in [
        ("/a", vec![branch("/a", rw)]),
        ("/a:/b:/c", vec![branch("/a", rw), branch("/b", ro), branch("/c", ro)]),
        ("/a=ro:/b=rw", vec![branch("/a", ro), branch("/b", rw)]),
        ("/a=rw:/b=rr", vec![branch("/a", rw), branch("/b", rr)]),
        ("/a=ro+wh", vec![BranchSpec { whiteouts: true, ..branch("/a", ro) }]),
        ("/a=rr+wh", vec![BranchSpec { whiteouts: true, ..branch("/a", rr) }]),
        ("/a=ro+wh+init", vec![BranchSpec { whiteouts: true, init: true, ..branch("/a", ro) }]),
        ("/a=ro+init+wh", vec![BranchSpec { whiteouts: true, init: true, ..branch("/a", ro) }]),
        ("/a=rw+nolwh", vec![BranchSpec { nolwh: true, ..branch("/a", rw) }]),
        ("/a=ro+ovl", vec![BranchSpec { whiteouts: true, overlay: true, ..branch("/a", ro) }]),
        ("/a=rr+ovl+wh", vec![BranchSpec { whiteouts: true, overlay: true, ..branch("/a", rr) }]),
        ("/a=rw+ovl", vec![BranchSpec { overlay: true, ..branch("/a", rw) }]),
        ("/a=rw+wh", vec![branch("/a", rw)]),
        (r"/a\:b=ro", vec![branch("/a:b", ro)]),
        (r"/a\=ro", vec![branch("/a=ro", rw)]),
        (r"/a=b=ro", vec![branch("/a=b", ro)]),
        (r"/a\\:/b", vec![branch(r"/a\", rw), branch("/b", ro)]),
        (r"/a\b", vec![branch(r"/a\b", rw)]),
        (r"/a\", vec![branch(r"/a\", rw)]),
        ("a+b", vec![branch("a+b", rw)]),
        ("/a b=ro", vec![branch("/a b", ro)]),
    ] {
        assert_eq!(read(list), Ok(expected), "{list}");
    }
}

#[test]
fn a_bad_branch_string_is_one_clear_error() {
    for (list, says) in [
        ("", "no branch is given"),
        (":", "branch 1 of the list has no path"),
        ("/a:", "branch 2 of the list has no path"),
        ("/a::/b", "branch 2 of the list has no path"),
        ("=rw", "branch 1 of the list has no path"),
        ("/a=", "unknown attribute '' of branch /a (known are rw, ro and rr, then +wh, +ovl, +init and +nolwh;"),
        ("/a=xx", "unknown attribute 'xx' of branch /a"),
        ("/a=RW", "unknown attribute 'RW' of branch /a"),
        ("/a=rw+foo", "unknown attribute 'foo' of branch /a"),
        ("/a=ro+", "unknown attribute '' of branch /a"),
        ("/a=wh", "unknown attribute 'wh' of branch /a"),
        ("/a=b", "write \\= for an = in a path"),
        ("/a:/b:/a=ro", "branch /a is given twice"),
        ("/a\0b", "zero byte"),
        ("/a=rw+init", "branch /a cannot be rw+init"),
        ("/a=rr+init", "branch /a cannot be rr+init"),
        ("/a=ro+ovl+init", "branch /a cannot be ro+ovl+init"),
        ("/a=rw+ovl+nolwh", "branch /a cannot be rw+ovl+nolwh"),
        ("/a=ro+nolwh", "branch /a cannot be ro+nolwh"),
    ] {
        let error = read(list).expect_err(list).to_string();
        assert!(error.contains(says), "{list}: {error}");
        assert!(!error.contains('\n'), "{list}: {error}");
    }
}

#[test]
fn there_are_no_more_branches_than_indices() {
    let list: Vec<String> = (0..=MOST).map(|i| i.to_string()).collect();
    assert_eq!(read(&list.join(":")), Err(BranchesError::TooMany { count: MOST + 1 }));
    assert_eq!(read(&list[..MOST].join(":")).map(|branches| branches.len()), Ok(MOST));
}

/// Any branch that the grammar can name.
fn any_branch() -> impl Strategy<Value = BranchSpec> {
    let byte = prop_oneof![3 => Just(b':'), 3 => Just(b'='), 3 => Just(b'\\'), 1 => Just(b','), 10 => 1..=255_u8];
    let path = proptest::collection::vec(byte, 1..12);
    let manner = prop_oneof![
        any::<bool>().prop_map(|nolwh| (Access::ReadWrite, false, false, false, nolwh)),
        Just((Access::ReadWrite, false, true, false, false)),
        any::<(bool, bool)>().prop_map(|(wh, init)| (Access::ReadOnly, wh, false, init, false)),
        any::<bool>().prop_map(|wh| (Access::RealReadOnly, wh, false, false, false)),
        any::<bool>().prop_map(|rr| (
            if rr { Access::RealReadOnly } else { Access::ReadOnly },
            true,
            true,
            false,
            false
        )),
    ];
    (path, manner).prop_map(|(path, (access, whiteouts, overlay, init, nolwh))| BranchSpec {
        path: PathBuf::from(OsString::from_vec(path)),
        access,
        whiteouts,
        overlay,
        init,
        nolwh,
    })
}

#[test]
fn what_is_written_has_the_form_that_was_asked_for() {
    let list = || read("/a=rw:/b=ro+wh:/c=rw").unwrap();
    assert_eq!(settle(list(), Whiteout::Wh), Ok(list()));
    let settled = settle(list(), Whiteout::Overlay).unwrap();
    assert_eq!(print(&settled), "/a=rw+ovl:/b=ro+wh:/c=rw+ovl");
    assert_eq!(settle(settled.clone(), Whiteout::Overlay), Ok(settled.clone()));
    let error = settle(settled, Whiteout::Wh).unwrap_err().to_string();
    assert_eq!(error, "branch /a is rw+ovl: a branch is written in that form with -o whiteout=overlay only");
}

proptest! {
    #[test]
    fn what_is_printed_is_read_back(branches in proptest::collection::vec(any_branch(), 1..6)) {
        let mut seen = HashSet::new();
        let branches: Vec<_> = branches.into_iter().filter(|branch| seen.insert(branch.path.clone())).collect();
        prop_assert_eq!(parse(&print(&branches)), Ok(branches));
    }

    #[test]
    fn garbage_is_a_value_or_one_line(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        read_any(&bytes)?;
    }

    #[test]
    fn garbage_of_the_grammar_is_a_value_or_one_line(text in r"[a/:=+\\,rowhinitvl]{0,40}") {
        read_any(text.as_bytes())?;
    }
}

/// Whatever the bytes are: branches that print and read as themselves, or an error.
fn read_any(bytes: &[u8]) -> Result<(), TestCaseError> {
    match parse(OsStr::from_bytes(bytes)) {
        Ok(branches) => {
            prop_assert!(!branches.is_empty());
            prop_assert_eq!(parse(&print(&branches)), Ok(branches));
        }
        Err(error) => prop_assert!(!error.to_string().is_empty()),
    }
    Ok(())
}
