//! Registries that misbehave: what is lost is fetched again, what is wrong is refused, what is secret stays secret.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::mount::{finish, poll};

#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/registry.rs"]
mod registry;
#[path = "support/tools.rs"]
mod tools;

use images::{Images, STORE, sha256};
use launch::RLAUNCH;
use registry::{Answered, Asked, Server};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image of one layer as a registry has it.
#[derive(Clone)]
struct Image {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
    layer_digest: String,
    config_digest: String,
    manifest_digest: String,
}

impl Image {
    fn new(images: &Images) -> Image {
        // More than what counts as progress, so that a connection may be lost often.
        let text: String =
            (0..700_000).map(|number: u32| format!("{:x} ", number.wrapping_mul(2_654_435_761))).collect();
        let layer = images.layer(&[("srv/large", &text), ("srv/x", "x")]);
        let digest = |bytes: &[u8]| {
            let file = images.tree.beside("digested");
            fs::write(&file, bytes).unwrap();
            format!("sha256:{}", sha256(&file))
        };
        let layer_digest = digest(&layer);
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{layer_digest}"]}}}}"#
        );
        let config_digest = digest(config.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config_digest}","size":{}}},"layers":[{{"mediaType":"{LAYER}","digest":"{layer_digest}","size":{}}}]}}"#,
            config.len(),
            layer.len()
        );
        let manifest_digest = digest(manifest.as_bytes());
        let (config, manifest) = (config.into_bytes(), manifest.into_bytes());
        Image { layer, config, manifest, layer_digest, config_digest, manifest_digest }
    }

    /// What a registry answers that behaves.
    fn answer(&self, asked: &Asked) -> Answered {
        let path = asked.path.as_str();
        let body = if path.contains("/manifests/") {
            return Answered::new(200, self.manifest.clone()).with("Content-Type", MANIFEST);
        } else if path.ends_with(&self.layer_digest) {
            &self.layer
        } else if path.ends_with(&self.config_digest) {
            &self.config
        } else if path == "/v2/" {
            return Answered::new(200, "{}");
        } else {
            return Answered::new(404, r#"{"errors":[{"code":"NAME_UNKNOWN","message":"not here"}]}"#);
        };
        match asked.first_byte() {
            Some(first) => Answered::new(206, &body[first..])
                .with("Content-Range", format!("bytes {first}-{}/{}", body.len() - 1, body.len())),
            None => Answered::new(200, body.clone()),
        }
    }

    fn is_layer(&self, asked: &Asked) -> bool {
        asked.path.ends_with(&self.layer_digest)
    }
}

/// That an image is refused for a reason, and nothing stays of it.
#[track_caller]
fn refused(images: &Images, words: &[&str], reason: &str) {
    let outcome = images.image(words);
    assert_eq!((outcome.status, &*outcome.stdout, outcome.stderr.lines().count()), (Some(125), "", 1), "{outcome:?}");
    assert!(outcome.stderr.contains(reason), "{reason}: {outcome:?}");
    assert_eq!(images.held(), [] as [std::path::PathBuf; 0], "{reason}");
}

#[test]
fn a_connection_that_is_lost_is_taken_up_where_it_was() {
    let Some(images) = Images::new() else { return };
    let image = Image::new(&images);
    let knows_ranges = [true, false];
    for knows_ranges in knows_ranges {
        let (served, count) = (image.clone(), AtomicUsize::new(0));
        let server = Server::start(move |asked| {
            let mut answered = if knows_ranges || !served.is_layer(asked) {
                served.answer(asked)
            } else {
                Answered::new(200, served.layer.clone())
            };
            if served.is_layer(asked) {
                // More often than anybody would try who had come no further.
                answered.cut = match (knows_ranges, count.fetch_add(1, Ordering::Relaxed)) {
                    (true, _) => Some(answered.body.len().min(1_100_000)),
                    (false, 0) => Some(900_000),
                    (false, _) => None,
                };
            }
            answered
        });
        let name = format!("{}/lost:1", server.host);
        images.print(&["pull", &name]);
        assert_eq!(fs::read(layer_file("srv/x")).unwrap(), b"x");
        let asked: Vec<_> = server.asked().into_iter().filter(|asked| image.is_layer(asked)).collect();
        let firsts: Vec<_> = asked.iter().map(|asked| asked.first_byte().unwrap_or(0)).collect();
        match knows_ranges {
            true => assert_eq!(firsts, (0..firsts.len()).map(|number| number * 1_100_000).collect::<Vec<_>>()),
            false => assert_eq!(firsts, [0, 900_000]),
        }
        images.print(&["rm", &name]);
    }
}

/// A file of the only layer.
fn layer_file(name: &str) -> std::path::PathBuf {
    let layer = fs::read_dir(Path::new(STORE).join("layers")).unwrap().next().unwrap().unwrap().path();
    layer.join("layer").join(name)
}

#[test]
fn a_server_that_is_busy_is_asked_again_and_not_for_ever() {
    let Some(images) = Images::new() else { return };
    let image = Image::new(&images);
    let (served, counts) = (image.clone(), Mutex::new(std::collections::HashMap::<String, usize>::new()));
    let server = Server::start(move |asked| {
        let mut counts = counts.lock().unwrap();
        let count = counts.entry(asked.path.clone()).or_default();
        *count += 1;
        // One fails, one asks to wait, one hangs up, and the next one answers.
        match *count {
            1 => Answered::new(503, "busy"),
            2 => Answered::new(429, "").with("Retry-After", "0"),
            3 if asked.path != "/v2/" => Answered::new(0, ""),
            _ => served.answer(asked),
        }
    });
    images.print(&["pull", &format!("{}/busy:1", server.host)]);
    assert_eq!(server.count("GET", "/manifests/"), 4);
    images.print(&["rm", &format!("{}/busy:1", server.host)]);
    let served = image.clone();
    let server = Server::start(move |asked| match served.is_layer(asked) {
        true => Answered::new(500, r#"{"errors":[{"code":"UNKNOWN","message":"no \u001b[31mdisk"}]}"#)
            .with("Retry-After", "0"),
        false => served.answer(asked),
    });
    refused(&images, &["pull", &format!("{}/broken:1", server.host)], "it answers 'UNKNOWN: no  [31mdisk'");
    assert_eq!(server.count("GET", &image.layer_digest), 5);
}

#[test]
fn what_is_wrong_is_refused_and_leaves_nothing() {
    let Some(images) = Images::new() else { return };
    let image = Image::new(&images);
    let by_tag = "x:1".to_owned();
    let by_digest = format!("x@{}", image.manifest_digest);
    let other = format!("x@sha256:{}", "a".repeat(64));
    type Change = fn(&Image, &Asked, Answered) -> Answered;
    let cases: [(&str, &str, Change); 12] = [
        ("it is not sha256:", &by_tag, |image, asked, mut answered| {
            if image.is_layer(asked) {
                answered.body[1_000_000] ^= 1;
            }
            answered
        }),
        ("longer than the", &by_tag, |image, asked, mut answered| {
            answered.is_endless = image.is_layer(asked);
            answered
        }),
        ("has not the", &by_tag, |image, asked, answered| match (image.is_layer(asked), asked.first_byte()) {
            (true, None) => Answered::new(200, &image.layer[..1000]),
            (true, _) => Answered::new(416, ""),
            _ => answered,
        }),
        ("another part than", &by_tag, |image, asked, mut answered| {
            match (image.is_layer(asked), asked.first_byte()) {
                (true, Some(_)) => Answered::new(206, image.layer.clone()).with("Content-Range", "bytes 5-6/7"),
                (true, None) => {
                    answered.cut = Some(1000);
                    answered
                }
                _ => answered,
            }
        }),
        ("bytes of a document", &by_tag, |_, asked, mut answered| {
            answered.is_endless = asked.path.contains("/manifests/");
            answered.body.extend([b' '; 1000]);
            answered
        }),
        ("it is not sha256:", &by_tag, |image, asked, mut answered| {
            if asked.path.ends_with(&image.config_digest) {
                answered.body[0] = b' ';
            }
            answered
        }),
        ("the manifest is not sha256:", &other, |_, _, answered| answered),
        ("the manifest is not sha256:", &by_digest, |_, asked, mut answered| {
            if asked.path.contains("/manifests/") {
                answered.body.push(b'\n');
            }
            answered
        }),
        ("the manifest is not sha256:", &by_tag, |_, _, answered| {
            answered.with("Docker-Content-Digest", format!("sha256:{}", "0".repeat(64)))
        }),
        ("read the manifest", &by_tag, |_, asked, answered| match asked.path.contains("/manifests/") {
            true => Answered::new(200, "<html>"),
            false => answered,
        }),
        ("schema 1", &by_tag, |_, asked, answered| match asked.path.contains("/manifests/") {
            true => Answered::new(200, r#"{"schemaVersion":1,"name":"x"}"#),
            false => answered,
        }),
        ("there is no such image", &by_tag, |_, asked, answered| match asked.path.contains("/manifests/") {
            true => Answered::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}"#),
            false => answered,
        }),
    ];
    for (reason, name, change) in cases {
        let served = image.clone();
        let server = Server::start(move |asked| change(&served, asked, served.answer(asked)));
        refused(&images, &["pull", &format!("{}/{name}", server.host)], reason);
    }
}

#[test]
fn a_password_goes_to_the_registry_and_its_server_of_tokens_alone() {
    let Some(images) = Images::new() else { return };
    let image = Image::new(&images);
    // Where blobs really are.
    let served = image.clone();
    let elsewhere = Server::start(move |asked| served.answer(asked));
    let tokens = Server::start(|asked| match asked.header("authorization") {
        Some("Basic bWU6c2VjcmV0") => Answered::new(200, r#"{"access_token":"t-1","expires_in":300}"#),
        _ => Answered::new(401, ""),
    });
    let (served, realm, far) = (image.clone(), tokens.host.clone(), elsewhere.host.clone());
    let server = Server::start(move |asked| {
        if asked.header("authorization") != Some("Bearer t-1") {
            let challenge = format!(r#"Bearer realm="http://{realm}/token?a=b",service="test""#);
            return Answered::new(401, r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#).with("WWW-Authenticate", challenge);
        }
        match asked.path.contains("/blobs/") {
            true => Answered::new(307, "").with("Location", format!("http://{far}{}", asked.path)),
            false => served.answer(asked),
        }
    });
    let name = format!("{}/a/b:1", server.host);
    images.print(&["pull", "--creds", "me:secret", &name]);
    let wanted = "/token?a=b&service=test&scope=repository%3Aa%2Fb%3Apull";
    assert_eq!(tokens.asked().iter().map(|asked| asked.path.clone()).collect::<Vec<_>>(), [wanted]);
    assert_eq!(elsewhere.asked().len(), 2);
    assert!(elsewhere.asked().iter().all(|asked| asked.header("authorization").is_none()));
    images.print(&["rm", &name]);
    let outcome = images.image(&["pull", "--creds", "me:wrong", &name]);
    assert!(outcome.status == Some(125) && outcome.stderr.contains("the credentials that were used"), "{outcome:?}");
    // Without one, it is asked for at a terminal, and there is none.
    let mut command = Command::new("setsid");
    let outcome = finish(command.args([RLAUNCH, "image", "pull", "--creds", "me", &name]));
    assert!(outcome.status == Some(125) && outcome.stderr.contains("there is no terminal"), "{outcome:?}");
}

#[test]
fn a_registry_leads_nowhere_in_circles_and_not_out_of_tls() {
    let Some(images) = Images::new() else { return };
    let server = Server::start(|asked| match asked.path.as_str() {
        "/v2/" => Answered::new(200, ""),
        path => Answered::new(302, "").with("Location", path),
    });
    refused(&images, &["pull", &format!("{}/x", server.host)], "it leads from one place to the next");
    let server = Server::start(|asked| match asked.path.as_str() {
        "/v2/" => Answered::new(200, ""),
        _ => Answered::new(302, "").with("Location", "file:///etc/passwd"),
    });
    refused(&images, &["pull", &format!("{}/x", server.host)], "it leads to no address that can be followed");
    // Who wants TLS gets nothing from a server without it.
    let served = Image::new(&images);
    let server = Server::start(move |asked| served.answer(asked));
    refused(&images, &["pull", "--tls-verify", &format!("{}/x", server.host)], "cannot pull");
    assert_eq!(server.count("GET", "/v2/x"), 0);
}

/// A registry that takes blobs, and loses a connection now and then.
#[derive(Default)]
struct Taken {
    /// Bytes of uploads, by their number.
    uploads: Vec<Vec<u8>>,
    losses: usize,
    manifest: Vec<u8>,
}

/// Answers a push; of the first `losses` uploads with content, half of it is taken, and `keeps` says whether that is
/// remembered.
fn take(taken: &Mutex<Taken>, asked: &Asked, keeps: bool) -> Answered {
    let mut taken = taken.lock().unwrap();
    let number = asked.path.split("/uploads/").nth(1).and_then(|word| word.split('?').next()?.parse::<usize>().ok());
    match (asked.method.as_str(), number) {
        ("GET", None) => Answered::new(200, "{}"),
        ("HEAD", _) => Answered::new(404, ""),
        ("POST", _) => {
            taken.uploads.push(Vec::new());
            let number = taken.uploads.len() - 1;
            Answered::new(202, "").with("Location", format!("/v2/x/blobs/uploads/{number}"))
        }
        ("PATCH", Some(number)) => {
            let begins = asked.header("content-range").and_then(|range| range.split('-').next()?.parse().ok());
            if begins.unwrap_or(0) != taken.uploads[number].len() {
                return Answered::new(416, "");
            }
            if taken.losses > 0 && asked.body.len() > 100_000 {
                taken.losses -= 1;
                if keeps {
                    let half = asked.body[..asked.body.len() / 2].to_vec();
                    taken.uploads[number].extend(half);
                }
                return Answered::new(0, "");
            }
            taken.uploads[number].extend(&asked.body);
            Answered::new(202, "").with("Location", format!("{number}?state=after"))
        }
        ("GET", Some(number)) if keeps => {
            let last = taken.uploads[number].len().saturating_sub(1);
            Answered::new(204, "")
                .with("Range", format!("0-{last}"))
                .with("Location", format!("/v2/x/blobs/uploads/{number}"))
        }
        ("PUT", Some(_)) => Answered::new(201, ""),
        ("PUT", None) => {
            taken.manifest.clone_from(&asked.body);
            Answered::new(201, "")
        }
        _ => Answered::new(404, ""),
    }
}

#[test]
fn an_upload_that_is_lost_goes_on_or_begins_anew() {
    let Some(images) = Images::new() else { return };
    let text: String = (0..100_000).map(|number: u32| format!("{:x} ", number.wrapping_mul(2_654_435_761))).collect();
    images.docker("ours", "{}", &[images.layer(&[("srv/large", &text)])]);
    images.print(&["import", "ours"]);
    for keeps in [true, false] {
        let taken = Arc::new(Mutex::new(Taken { losses: 3, ..Taken::default() }));
        let shared = Arc::clone(&taken);
        let server = Server::start(move |asked| take(&shared, asked, keeps));
        let pushed = images.print(&["push", "ours:1", &format!("{}/x:1", server.host)]);
        let taken = taken.lock().unwrap();
        assert_eq!(taken.losses, 0);
        let file = images.tree.beside("manifest");
        fs::write(&file, &taken.manifest).unwrap();
        assert!(pushed.trim().ends_with(&sha256(&file)), "{pushed}");
        // What has arrived is what the manifest says.
        let whole = taken.uploads.iter().filter(|upload| {
            fs::write(&file, upload).unwrap();
            String::from_utf8_lossy(&taken.manifest).contains(&sha256(&file))
        });
        assert_eq!((whole.count(), taken.uploads.len()), if keeps { (2, 2) } else { (2, 5) });
    }
    // One that is always lost is not tried for ever.
    let taken = Arc::new(Mutex::new(Taken { losses: 1000, ..Taken::default() }));
    let server = Server::start(move |asked| take(&taken, asked, false));
    let outcome = images.image(&["push", "ours:1", &format!("{}/x:1", server.host)]);
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(125), 1), "{outcome:?}");
    assert!(server.count("PATCH", "/uploads/") < 10 && server.count("PUT", "/manifests/") == 0);
}

#[test]
fn whoever_is_killed_while_pulling_leaves_the_store_whole() {
    let Some(images) = Images::new() else { return };
    let image = Image::new(&images);
    let (served, stalls) = (image.clone(), Arc::new(AtomicUsize::new(1)));
    let stalling = Arc::clone(&stalls);
    let server = Server::start(move |asked| {
        let mut answered = served.answer(asked);
        if served.is_layer(asked) && stalling.load(Ordering::Relaxed) == 1 {
            (answered.cut, answered.stalls) = (Some(2_000_000), true);
        }
        answered
    });
    let name = format!("{}/killed:1", server.host);
    let mut child = Command::new(RLAUNCH).args(["image", "pull", &name]).stdout(Stdio::null()).spawn().unwrap();
    let temporary = Path::new(STORE).join("tmp");
    let has_begun = || {
        let entries = fs::read_dir(&temporary).into_iter().flatten().flatten();
        entries.filter_map(|entry| fs::metadata(entry.path().join("blob-0")).ok()).find(|about| about.len() > 1_000_000)
    };
    poll(Duration::from_secs(30), has_begun).expect("something comes");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(images.print(&["ls"]).lines().count(), 1);
    assert_eq!(images.held(), [] as [std::path::PathBuf; 0]);
    stalls.store(0, Ordering::Relaxed);
    images.print(&["pull", &name]);
    assert_eq!(fs::read(layer_file("srv/x")).unwrap(), b"x");
}
