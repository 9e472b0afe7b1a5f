//! An archive that is imported as an image: it is in the store whole, and can be shown and removed, or nothing is.
#![no_main]

use std::fs;

use fuzz::store::Store;
use fuzz::{archive, seeds};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

#[path = "../../support/archives.rs"]
mod archives;

use archives::{file, member, pax};

fuzz_target!(init: begin(), |bytes: &[u8]| {
    let store = Store::get();
    let path = store.path("archive.tar");
    fs::write(&path, bytes).expect("write the archive");
    store.import(&path);
});
fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| { archive::mutate(data, size, most, seed) });

fn begin() {
    Store::get();
    let layer = archives::archive(&[file("etc/motd", "hello")]);
    let digest = Store::digest(&layer);
    let config = format!(
        r#"{{"os":"linux","config":{{"Cmd":["x"],"Volumes":{{"/v":{{}}}}}},"rootfs":{{"diff_ids":["sha256:{digest}"]}},"history":[{{"created_by":"x"}},{{"empty_layer":true}}]}}"#
    );
    let content = |name: &str, content: &[u8]| member(name, b'0', content, "");
    let list = r#"[{"Config":"c.json","RepoTags":["a:1","b/c"],"Layers":["l/layer.tar"]}]"#;
    let docker = archives::archive(&[
        content("manifest.json", list.as_bytes()),
        content("c.json", config.as_bytes()),
        content("l/layer.tar", &layer),
    ]);
    let linked = archives::archive(&[
        content("m/layer.tar", &layer),
        member("l/layer.tar", b'2', b"", "../m/layer.tar"),
        pax(&[("path", b"manifest.json")]),
        content("x", list.as_bytes()),
        member("././@LongLink", b'L', b"c.json\0", ""),
        content("cut", config.as_bytes()),
    ]);
    // The manifest of an image is of this length and digest.
    let descriptor = |bytes: &[u8]| format!(r#""digest":"sha256:{}","size":{}"#, Store::digest(bytes), bytes.len());
    let (of_config, of_layer) = (descriptor(config.as_bytes()), descriptor(&layer));
    let manifest = format!(r#"{{"schemaVersion":2,"config":{{{of_config}}},"layers":[{{{of_layer}}}]}}"#);
    let of_manifest = descriptor(manifest.as_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{{of_manifest},"annotations":{{"org.opencontainers.image.ref.name":"a:1"}}}}]}}"#
    );
    let blob = |bytes: &[u8]| content(&format!("blobs/sha256/{}", Store::digest(bytes)), bytes);
    let oci = archives::archive(&[
        content("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        content("index.json", index.as_bytes()),
        blob(manifest.as_bytes()),
        blob(config.as_bytes()),
        blob(&layer),
    ]);
    let all = [seeds::gzip(&docker), docker, linked, oci, layer];
    seeds::write("image", all.iter().map(Vec::as_slice));
}
