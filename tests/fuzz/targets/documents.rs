//! The documents of an image, with digests that are right wherever they are to be: a configuration, a manifest and an index
//! of a layout, or a configuration and a list as docker writes them; a zero byte is between two.
#![no_main]

use std::fs;
use std::path::Path;

use fuzz::seeds;
use fuzz::store::Store;
use libfuzzer_sys::fuzz_target;

#[path = "../../support/archives.rs"]
mod archives;

fuzz_target!(init: begin(), |bytes: &[u8]| {
    let mut parts = bytes.split(|byte| *byte == 0);
    let mut next = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (config, manifest, index) = (next(), next(), next());
    let store = Store::get();
    let directory = store.path("image");
    fs::create_dir_all(directory.join("blobs/sha256")).expect("make the image");
    let layer = layer();
    let config = config.replace("$DIFF", &format!("sha256:{}", Store::digest(&layer)));
    let manifest = manifest.replace("$CONFIG", &descriptor(config.as_bytes())).replace("$LAYER", &descriptor(&layer));
    if index.is_empty() {
        for (name, content) in [("manifest.json", manifest.as_bytes()), ("config.json", config.as_bytes()), ("l", &layer)] {
            fs::write(directory.join(name), content).expect("write the image");
        }
    } else {
        let index = index.replace("$MANIFEST", &descriptor(manifest.as_bytes()));
        write_layout(&directory, [config.as_bytes(), manifest.as_bytes(), index.as_bytes(), &layer]);
    }
    store.import(&directory);
    fs::remove_dir_all(directory).expect("remove the image");
});

fn write_layout(directory: &Path, documents: [&[u8]; 4]) {
    for document in documents {
        let name = format!("blobs/sha256/{}", Store::digest(document));
        fs::write(directory.join(name), document).expect("write the image");
    }
    fs::write(directory.join("index.json"), documents[2]).expect("write the image");
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write the image");
}

fn layer() -> Vec<u8> {
    archives::archive(&[archives::file("etc/motd", "hello")])
}

fn descriptor(bytes: &[u8]) -> String {
    format!(r#""digest":"sha256:{}","size":{}"#, Store::digest(bytes), bytes.len())
}

fn begin() {
    Store::get();
    let config = r#"{"created":"2024-05-06T07:08:09Z","author":"a","architecture":"amd64","os":"linux","config":{"User":"1:2","Env":["A=b"],"Entrypoint":["x"],"Cmd":null,"WorkingDir":"/w","StopSignal":"SIGTERM","Volumes":{"/v":{}},"ExposedPorts":{"80/tcp":{}}},"rootfs":{"type":"layers","diff_ids":["$DIFF"]},"history":[{"created":"x","created_by":"y","comment":"z","empty_layer":false}]}"#;
    let manifest = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",$CONFIG},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",$LAYER}],"annotations":{"a":"b"}}"#;
    let of_docker = r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"mediaType":"x",$CONFIG},"layers":[{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip",$LAYER}]}"#;
    let index = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",$MANIFEST,"annotations":{"org.opencontainers.image.ref.name":"1"},"platform":{"architecture":"amd64","os":"linux","variant":"v8"}}]}"#;
    let list = r#"[{"Config":"config.json","RepoTags":["a:1"],"Layers":["l"]}]"#;
    let all = [
        [config, manifest, index].join("\0"),
        [config, of_docker, index].join("\0"),
        [config, list].join("\0"),
        [config, manifest].join("\0"),
        ["{}", manifest, index].join("\0"),
    ];
    seeds::write("documents", all.iter().map(String::as_bytes));
}
