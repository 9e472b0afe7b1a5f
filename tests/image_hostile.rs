//! Images of strangers: whatever is imported, there is one line that says what is wrong, nothing half-made is in the store,
//! nothing else is read, and nothing hangs. What layers hold is tried in `apply_hostile`.
//!
//! `RUNIONFS_IMAGE_CASES` sets how many archives are damaged.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::trial::{number, try_many};
use nix::sys::stat::Mode;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

#[path = "support/archives.rs"]
mod archives;
#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use archives::{archive, file, member, sized, sum};
use images::Images;
use launch::RLAUNCH;

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A layout of an image with one layer, whose documents are what `change` makes of them.
struct Layout {
    index: String,
    manifest: String,
    config: String,
    layer: Vec<u8>,
}

impl Layout {
    fn new() -> Layout {
        let layer = archive(&[file("etc/motd", "hello")]);
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["x"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
            digest(&layer)
        );
        Layout { index: String::new(), manifest: String::new(), config, layer }
    }

    fn descriptor(kind: &str, bytes: &[u8]) -> String {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"sha256:{}","size":{}}}"#,
            digest(bytes),
            bytes.len()
        )
    }

    /// Fills in what follows from the rest, as far as it is not there.
    fn complete(mut self) -> Layout {
        if self.manifest.is_empty() {
            let config = Layout::descriptor("config.v1+json", self.config.as_bytes());
            let layer = Layout::descriptor("layer.v1.tar", &self.layer);
            self.manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#);
        }
        if self.index.is_empty() {
            let manifest = Layout::descriptor("manifest.v1+json", self.manifest.as_bytes());
            self.index = format!(r#"{{"schemaVersion":2,"manifests":[{manifest}]}}"#);
        }
        self
    }

    fn write(&self, directory: &Path) {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        fs::write(directory.join("index.json"), &self.index).unwrap();
        for content in [self.manifest.as_bytes(), self.config.as_bytes(), &self.layer] {
            fs::write(blobs.join(digest(content)), content).unwrap();
        }
    }

    fn blob(directory: &Path, content: &[u8]) -> PathBuf {
        directory.join("blobs/sha256").join(digest(content))
    }
}

/// Imports what must be refused.
#[track_caller]
fn assert_refused(images: &Images, name: &str, why: &str) {
    let before = images.held();
    let outcome = images.image(&["import", name]);
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(125), 1), "{name}: {outcome:?}");
    assert!(outcome.stderr.contains(why), "{name}: {}", outcome.stderr);
    assert!(outcome.stderr.len() < 2_000, "{name}: {} bytes of message", outcome.stderr.len());
    assert_eq!(images.held(), before, "{name}");
}

#[test]
fn documents_that_are_none_are_refused() {
    let Some(images) = Images::new() else { return };
    let deep = "[".repeat(200_000);
    let long = " ".repeat(5 << 20);
    let huge = format!("[{}0]", "0,".repeat(1 << 20));
    let good = Layout::new().complete();
    let manifest = &good.manifest;
    let config_of = |config: &str| Layout { config: config.to_owned(), ..Layout::new() };
    let manifest_of = |manifest: String| Layout { manifest, ..Layout::new() };
    let index_of = |index: String| Layout { index, ..Layout::new() };
    let many_layers = |count: usize| {
        let ids = vec![format!("\"sha256:{}\"", digest(&good.layer)); count].join(",");
        let config = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#);
        let layers = vec![Layout::descriptor("layer.v1.tar", &good.layer); count].join(",");
        let about = Layout::descriptor("config.v1+json", config.as_bytes());
        let manifest = format!(r#"{{"schemaVersion":2,"config":{about},"layers":[{layers}]}}"#);
        Layout { config, manifest, ..Layout::new() }
    };
    let inner = Layout::descriptor("manifest.v1+json", manifest.as_bytes());
    let nested = Layout::descriptor("index.v1+json", good.index.as_bytes());
    let cases: Vec<(&str, Layout, &str)> = vec![
        ("deep-index", index_of(deep.clone()), ""),
        ("deep-manifest", manifest_of(deep.clone()), ""),
        ("deep-config", config_of(&deep), ""),
        ("deep-inside", config_of(&format!(r#"{{"config":{{"Labels":{deep}"#)), ""),
        ("long-index", index_of(long.clone()), "too long"),
        ("long-config", config_of(&long), "too long"),
        ("huge-index", index_of(huge.clone()), ""),
        ("huge-config", config_of(&huge), ""),
        ("null", config_of("null"), ""),
        (
            "twice",
            manifest_of(manifest.replacen("\"schemaVersion\":2", "\"schemaVersion\":2,\"schemaVersion\":2", 1)),
            "",
        ),
        ("no-utf8", config_of("{\"config\":{\"User\":\"\u{0}\"}}"), ""),
        ("negative", manifest_of(manifest.replace("\"size\":", "\"size\":-")), ""),
        ("larger", manifest_of(manifest.replace("\"size\":", "\"size\":9")), ""),
        ("largest", manifest_of(manifest.replace("\"size\":", "\"size\":99999999999999999999")), ""),
        ("no-digest", manifest_of(manifest.replace("sha256:", "sha256:../../../../../etc/passwd")), ""),
        ("other-digest", manifest_of(manifest.replace("sha256:", "sha512:")), ""),
        ("path-digest", index_of(good.index.replace(&digest(manifest.as_bytes()), &"../".repeat(21))), ""),
        ("missing-blob", manifest_of(manifest.replace(&digest(&good.layer), &digest(b"missing"))), ""),
        ("no-layers", many_layers(0), ""),
        ("many-layers", many_layers(501), "501 layers"),
        ("index-of-index", index_of(format!(r#"{{"schemaVersion":2,"manifests":[{nested}]}}"#)), ""),
        (
            "many-images",
            index_of(format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, vec![inner; 1_001].join(","))),
            "more images",
        ),
    ];
    for (name, layout, why) in cases {
        let layout = layout.complete();
        layout.write(&images.tree.beside(name));
        if name == "index-of-index" {
            fs::write(Layout::blob(&images.tree.beside(name), good.index.as_bytes()), &good.index).unwrap();
        }
        if matches!(name, "no-layers" | "index-of-index") {
            // There is nothing wrong with them, but nothing to run either, or one index more than needed.
            let outcome = images.image(&["import", name]);
            assert!(!outcome.stderr.contains("panic"), "{outcome:?}");
            images.image(&["rm", "--force", name]);
            images.print(&["gc"]);
            continue;
        }
        assert_refused(&images, name, why);
    }
}

#[test]
fn what_is_no_file_is_not_opened() {
    let Some(images) = Images::new() else { return };
    let good = Layout::new().complete();
    for (kind, why) in [("fifo", "no file"), ("device", "no file"), ("directory", "no file"), ("dangling", "")] {
        for (part, content) in
            [("manifest", good.manifest.as_bytes()), ("config", good.config.as_bytes()), ("layer", &good.layer)]
        {
            let name = format!("{kind}-{part}");
            let directory = images.tree.beside(&name);
            good.write(&directory);
            let blob = Layout::blob(&directory, content);
            fs::remove_file(&blob).unwrap();
            match kind {
                "fifo" => nix::unistd::mkfifo(&blob, Mode::S_IRUSR).unwrap(),
                "device" => symlink("/dev/zero", &blob).unwrap(),
                "directory" => fs::create_dir(&blob).unwrap(),
                _ => symlink("nowhere", &blob).unwrap(),
            }
            assert_refused(&images, &name, why);
        }
    }
    // What lies elsewhere is what its digest says all the same.
    let directory = images.tree.beside("linked");
    good.write(&directory);
    let blob = Layout::blob(&directory, &good.layer);
    fs::rename(&blob, images.tree.beside("elsewhere")).unwrap();
    symlink("../../../elsewhere", &blob).unwrap();
    images.print(&["import", "linked"]);
    images.print(&["rm", "linked"]);
    fs::write(images.tree.beside("elsewhere"), "another one").unwrap();
    assert_refused(&images, "linked", "");
}

#[test]
fn names_in_the_archives_of_docker_lead_nowhere_else() {
    let Some(images) = Images::new() else { return };
    let layer = archive(&[file("a", "a")]);
    let config = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#, digest(&layer));
    fs::write(images.tree.beside("outside.json"), &config).unwrap();
    fs::write(images.tree.beside("outside.tar"), &layer).unwrap();
    let outside = images.tree.beside("outside.tar").display().to_string();
    for (number, (config_name, layer_name)) in [
        ("../outside.json", "l.tar"),
        ("c.json", "../outside.tar"),
        ("c.json", &*outside),
        ("c.json", "x/../../outside.tar"),
        ("c.json", "manifest.json"),
        ("c.json", "c.json\u{0}"),
        ("c.json", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let list = format!(r#"[{{"Config":{config_name:?},"RepoTags":null,"Layers":[{layer_name:?}]}}]"#)
            .replace("\\0", "\\u0000");
        let directory = images.tree.beside(&format!("directory-{number}"));
        fs::create_dir(&directory).unwrap();
        for (name, content) in [("c.json", config.as_bytes()), ("l.tar", &layer), ("manifest.json", list.as_bytes())] {
            fs::write(directory.join(name), content).unwrap();
        }
        assert_refused(&images, &format!("directory-{number}"), "");
        let members = [
            member("manifest.json", b'0', list.as_bytes(), ""),
            member("c.json", b'0', config.as_bytes(), ""),
            member("l.tar", b'0', &layer, ""),
        ];
        // In an archive, names count from its root, and lead to members.
        fs::write(images.tree.beside(&format!("archive-{number}.tar")), archive(&members)).unwrap();
        assert_refused(&images, &format!("archive-{number}.tar"), "");
    }
}

#[test]
fn archives_of_images_that_are_none_are_refused() {
    let Some(images) = Images::new() else { return };
    let list = br#"[{"Config":"c.json","RepoTags":null,"Layers":["l.tar"]}]"#;
    let first = || member("manifest.json", b'0', list, "");
    let mut largest = [0xFF; 12];
    largest[0] = 0x80;
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("cut.tar", archive(&[first()])[..700].to_vec(), "cut off"),
        ("no-config.tar", archive(&[first()]), ""),
        ("loop.tar", archive(&[first(), member("c.json", b'2', b"", "c.json")]), "circle"),
        ("out.tar", archive(&[first(), member("c.json", b'2', b"", "../../etc/passwd")]), ""),
        ("hard-loop.tar", archive(&[first(), member("c.json", b'1', b"", "c.json")]), "circle"),
        ("larger.tar", archive(&[first(), sized("c.json", *b"77777777777\0")]), "cut off"),
        ("largest.tar", archive(&[first(), sized("c.json", largest)]), ""),
        ("negative.tar", archive(&[first(), sized("c.json", [0xFF; 12])]), ""),
        ("damaged.tar", [first(), vec![b'x'; 512]].concat(), "damaged"),
        ("bad-pax.tar", archive(&[first(), member("x", b'x', b"garbage", "")]), ""),
        ("pax-size.tar", archive(&[first(), member("x", b'x', b"11 size=-1\n", ""), file("c.json", "")]), ""),
    ];
    for (name, bytes, why) in cases {
        fs::write(images.tree.beside(name), bytes).unwrap();
        assert_refused(&images, name, why);
    }
    // A name of a gigabyte takes no room on the disk, and none in memory either.
    for kind in [b'L', b'K', b'x'] {
        let path = images.tree.beside("name.tar");
        let mut header: [u8; 512] = sized("././@LongLink", *b"10000000000\0").try_into().unwrap();
        header[156] = kind;
        sum(&mut header);
        fs::write(&path, [&first()[..], &header].concat()).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len((1 << 30) + 4096).unwrap();
        assert_refused(&images, "name.tar", "too long");
    }
}

#[test]
fn what_a_configuration_says_of_running_is_not_believed() {
    let Some(images) = Images::new() else { return };
    let cases = [
        r#"{"Cmd":["a\u0000b"]}"#,
        r#"{"Cmd":[""]}"#,
        r#"{"Cmd":["true"],"Env":["A\u0000B=1"]}"#,
        r#"{"Cmd":["true"],"Env":["=1","","NONAME","PATH"]}"#,
        r#"{"Cmd":["true"],"WorkingDir":"../../../../../../var/tmp/of-a-test"}"#,
        r#"{"Cmd":["true"],"WorkingDir":"a\u0000b"}"#,
        r#"{"Cmd":["true"],"WorkingDir":"/bin/sh"}"#,
        r#"{"Cmd":["true"],"User":"0:0:0"}"#,
        r#"{"Cmd":["true"],"User":"-1"}"#,
        r#"{"Cmd":["true"],"User":"4294967295"}"#,
        r#"{"Cmd":["true"],"User":"99999999999"}"#,
        r#"{"Cmd":["true"],"User":"no\nbody"}"#,
        r#"{"Cmd":["true"],"User":"\u0000"}"#,
        r#"{"Cmd":["true"],"StopSignal":"-9"}"#,
        r#"{"Cmd":["true"],"StopSignal":"99999999999"}"#,
        r#"{"Cmd":["true"],"Volumes":{"../../x":{},"":{},"a\u0000b":{}},"ExposedPorts":{"99999/x":{}}}"#,
        r#"{"Entrypoint":["../../../../bin/sh"],"Cmd":["-c","exit 7"]}"#,
    ];
    let base = images.base();
    for (number, config) in cases.into_iter().enumerate() {
        let name = format!("says-{number}");
        images.docker(&name, config, std::slice::from_ref(&base));
        images.print(&["import", &name]);
        for words in [&["run", "--image", &format!("{name}:1")][..], &["image", "inspect", &format!("{name}:1")]] {
            let outcome: Outcome = finish(Command::new(RLAUNCH).args(words));
            let is_usual = matches!(outcome.status, Some(0 | 7 | 125 | 126 | 127));
            assert!(is_usual && !outcome.stderr.contains("panic"), "{config}: {outcome:?}");
            assert!(
                outcome.status == Some(0) || !outcome.stderr.is_empty() || outcome.status == Some(7),
                "{outcome:?}"
            );
        }
    }
    assert!(!Path::new("/var/tmp/of-a-test").exists());
}

/// Something that happens to an archive of an image.
#[derive(Debug, Clone)]
enum Damage {
    Byte(prop::sample::Index, u8),
    /// A byte of a header, with a checksum that is right.
    Field(prop::sample::Index, prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Lost(prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        3 => (at(), prop::sample::select(b"0123456789abcdef\"{}[],:/.\\\0\xFF".to_vec()))
            .prop_map(|(at, byte)| Damage::Byte(at, byte)),
        2 => (at(), at(), any::<u8>()).prop_map(|(block, at, byte)| Damage::Field(block, at, byte)),
        1 => at().prop_map(Damage::Cut),
        1 => at().prop_map(Damage::Lost),
    ]
}

impl Damage {
    /// Where there is something but zeros: most of an archive is padding.
    fn to(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let said: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        if said.is_empty() || bytes.len() < 512 {
            return bytes;
        }
        let block = |at: &prop::sample::Index| (said[at.index(said.len())] / 512 * 512).min(bytes.len() - 512);
        match self {
            Damage::Byte(at, byte) => bytes[said[at.index(said.len())]] = *byte,
            Damage::Field(at, field, byte) => {
                let start = block(at);
                let header: &mut [u8; 512] = (&mut bytes[start..start + 512]).try_into().unwrap();
                header[field.index(512)] = *byte;
                sum(header);
            }
            Damage::Cut(at) => bytes.truncate(said[at.index(said.len())]),
            Damage::Lost(at) => {
                let start = block(at);
                drop(bytes.drain(start..start + 512));
            }
        }
        bytes
    }
}

#[test]
fn an_archive_that_is_damaged_anywhere_leaves_the_store_as_it_was() {
    let Some(images) = Images::new() else { return };
    Layout::new().complete().write(&images.tree.beside("good"));
    images.print(&["import", "good"]);
    let forms: Vec<Vec<u8>> = ["oci-archive", "docker-archive"]
        .iter()
        .map(|form| {
            images.print(&["export", "good", "--format", form, "-o", form]);
            fs::read(images.tree.beside(form)).unwrap()
        })
        .collect();
    images.print(&["rm", "good"]);
    assert!(images.held().is_empty());
    let archives = (prop::sample::select(forms), prop::collection::vec(damage(), 1..4))
        .prop_map(|(whole, damages)| damages.iter().fold(whole, |bytes, damage| damage.to(bytes)));
    try_many(number("RUNIONFS_IMAGE_CASES", 120), &archives, |bytes| {
        fs::write(images.tree.beside("damaged"), bytes).unwrap();
        let outcome = images.image(&["import", "damaged", "--name", "damaged"]);
        prop_assert!(!outcome.stderr.contains("panic"), "{:?}", outcome);
        if outcome.status == Some(0) {
            images.print(&["inspect", "damaged"]);
            images.print(&["rm", "damaged"]);
        } else {
            prop_assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(125), 1), "{:?}", outcome);
        }
        prop_assert!(images.held().is_empty(), "left: {:?}", images.held());
        Ok(())
    });
}
