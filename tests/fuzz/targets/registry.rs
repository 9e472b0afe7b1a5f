//! What a registry says of itself, and names of images: what is secret goes to the machine only that it is for.
#![no_main]

use fuzz::seeds;
use http::Uri;
use launcher::fuzzing::{host, location, realm, reference};
use libfuzzer_sys::fuzz_target;

const HOME: &str = "https://registry.example:5000/v2/a/blobs/uploads/1?x=/y";

fuzz_target!(init: begin(), |bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    drop(realm(&lines));
    for line in &lines {
        go_on(line);
        if let Some([host, path, name]) = reference(line) {
            assert!(name.bytes().all(|byte| byte.is_ascii_graphic()) && !path.contains(".."), "{name}");
            assert_eq!(reference(&name), Some([host, path, name.clone()]), "{name} is another one");
        }
        if let Some(name) = host(line) {
            assert_eq!(host(&name).as_ref(), Some(&name));
        }
    }
});

fn go_on(said: &str) {
    let Some((target, is_same)) = location(HOME, said) else { return };
    assert!(target.starts_with("https://") || target.starts_with("http://"), "{target}");
    assert!(!target.bytes().any(|byte| byte.is_ascii_control() || byte == b' '), "{target}");
    // As the client reads it that goes there.
    let Ok(read) = target.parse::<Uri>() else { return };
    let home: Uri = HOME.parse().expect("an address");
    assert!(!is_same || (read.scheme(), read.authority()) == (home.scheme(), home.authority()), "{target}");
}

fn begin() {
    let all: [&[u8]; 5] = [
        b"Bearer realm=\"https://a/token\",service=\"r\",scope=\"repository:a:pull,push\"\nBasic realm=\"a, b\"",
        b"bearer service=r , realm=\"https://a?x=\\\"1\\\"\"\nDigest x=y",
        b"/v2/b?c=d\nhttps://o/x#y\n//o/x\nid\nhttps://registry.example:5000@evil/x\nhttps://registry.example:5000?x",
        b"docker://quay.io/a/b\nindex.docker.io/busybox\nlocalhost:5000/a/b:c\n127.0.0.1:5000/a\na:tag",
        b"a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nhttps://index.docker.io/v1/",
    ];
    seeds::write("registry", all);
}
