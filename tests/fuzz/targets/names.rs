//! Names of a branch, and values of attributes in it: what is read of them can be written, and is the same again.
#![no_main]

use fuzz::seeds;
use libfuzzer_sys::fuzz_target;
use unionfs::acl;
use unionfs::branch::kept::Override;
use unionfs::branch::private;
use unionfs::control::status::Status;
use unionfs::union::redirect::Redirect;
use unionfs::union::{Name, RawName};

fuzz_target!(init: begin(), |bytes: &[u8]| {
    name(bytes);
    redirect(bytes);
    if let Some(said) = Override::parse(bytes) {
        assert_eq!(Override::parse(said.print().as_bytes()), Some(said));
    }
    access(bytes);
    if let Some(shown) = private::shown(bytes) {
        assert!(private::is_private(bytes, true) || shown != bytes, "a private attribute is shown");
    }
    drop(Status::from_line(bytes));
});

fn name(bytes: &[u8]) {
    let name = Name::new(bytes);
    match RawName::parse(bytes) {
        RawName::Entry(entry) => assert!(name == Ok(entry) && entry.as_bytes() == bytes),
        RawName::Whiteout(hidden) => {
            assert!(name.is_err() && Name::new(hidden.as_bytes()) == Ok(hidden));
            assert_eq!(hidden.whiteout_in_layer(), bytes);
        }
        RawName::LongWhiteout | RawName::Opaque | RawName::Reserved => assert!(name.is_err()),
    }
    let Ok(name) = name else { return };
    assert_eq!(name.to_owned().as_bytes(), bytes);
    let whiteout = name.whiteout();
    assert!(whiteout.file.len() <= 255 && Name::new(&whiteout.file).is_err());
    match RawName::parse(&whiteout.file) {
        RawName::Whiteout(hidden) => assert!(hidden == name && whiteout.content.is_empty()),
        RawName::LongWhiteout => assert_eq!(whiteout.content, bytes),
        other => panic!("a whiteout is {other:?}"),
    }
}

fn redirect(bytes: &[u8]) {
    match Redirect::overlay(bytes) {
        Some(Redirect::Path(names)) => {
            let path: Vec<u8> = names.iter().flat_map(|name| [b"/", name.as_bytes()].concat()).collect();
            assert!(path == bytes && Redirect::path(&path[1..]) == Some(Redirect::Path(names)));
        }
        Some(Redirect::Sibling(name)) => assert!(name.as_bytes() == bytes && !bytes.contains(&b'/')),
        None => {}
    }
}

fn access(bytes: &[u8]) {
    let is_acl = acl::mode_of(bytes).is_some();
    drop((acl::inherit(bytes, 0o777), acl::to_text(bytes), acl::mapped(bytes, Some, Some), acl::of_known(bytes)));
    let changed = acl::with_mode(bytes, 0o640);
    assert_eq!(changed.len(), bytes.len());
    assert!(!is_acl || acl::mode_of(&changed).is_some());
    assert_eq!(acl::safe_mode(bytes, 0o7777) & !0o7777, 0);
}

fn begin() {
    let acl =
        [&[2, 0, 0, 0][..], &[1, 0, 6, 0, 0xFF, 0xFF, 0xFF, 0xFF], &[2, 0, 4, 0, 0xE8, 3, 0, 0], &[0x10, 0, 7, 0]]
            .concat();
    let whole = [&acl[..], &[0xFF; 4], &[4, 0, 5, 0, 0xFF, 0xFF, 0xFF, 0xFF], &[0x20, 0, 4, 0, 0xFF, 0xFF, 0xFF, 0xFF]];
    let (whole, long) = (whole.concat(), [b'x'; 252]);
    let all: [&[u8]; 13] = [
        b"a",
        b".wh.a",
        b".wh..wh..opq",
        b".wh..wh.long.0123",
        b".wh..wh.runionfs",
        &long,
        b"/a/b/.wh.c",
        b"/a/b",
        b"0:1000:0755:char1:3",
        b"4294967295:0:7777:pipe\0",
        &whole,
        b"user.containers.override_stat",
        b"trusted.overlay.overlay.redirect",
    ];
    seeds::write("names", all);
}
