//! Images go to a registry and come back: Debian's docker-registry, with skopeo and podman as witnesses.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::rootless::{Way, again};

#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/registry.rs"]
mod registry;
#[path = "support/tools.rs"]
mod tools;

use images::{Images, STORE};
use launch::{RLAUNCH, Tree, sh};
use registry::Registry;

const CONFIG: &str = r#"{"Env":["A=b"],"Cmd":["sh","-c","echo $A; cat /etc/motd"]}"#;
/// Name and password, and what htpasswd makes of them.
const NAME: &str = "me";
const PASSWORD: &str = "s3cret:x";
const HTPASSWD: &str = "me:$2b$04$abcdefghijklmnopqrstuuh51NQfZBCY2nUs1Btlpp7LsFp/mk44C\n";

/// An image of three layers in the store, called `ours:1`, and a registry.
fn ours(auth: &str, tls: &str) -> Option<(Images, Registry)> {
    let images = Images::new()?;
    let registry = Registry::start(&images.tree.beside("registry"), auth, tls)?;
    let second = images.layer(&[("etc/motd", "hello"), ("etc/.wh.passwd", ""), ("srv/old/x", "")]);
    let third = images.layer(&[("srv/old/.wh..wh..opq", ""), ("srv/old/y", &"y".repeat(3 << 20))]);
    images.docker("ours", CONFIG, &[images.base(), second, third]);
    images.print(&["import", "ours"]);
    Some((images, registry))
}

/// Runs a script in the test's directory, and returns what it prints.
#[track_caller]
fn output(images: &Images, script: &str) -> String {
    let outcome = finish(Command::new("sh").args(["-ec", script]).current_dir(images.tree.beside("")));
    assert_eq!(outcome.status, Some(0), "{script}: {outcome:?}");
    outcome.stdout
}

/// The second word of what a command prints of an image.
fn id(printed: &str) -> String {
    printed.split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn what_is_pushed_comes_back_the_same_and_is_there_once() {
    let Some((images, registry)) = ours("", "") else { return };
    let host = &registry.host;
    let details = images.print(&["inspect", "ours:1"]);
    let name = format!("{host}/some/ours:1");
    let pushed = images.print(&["push", "ours:1", &name]);
    let (place, digest) = pushed.trim().split_once('@').unwrap();
    assert_eq!(place, format!("{host}/some/ours"));
    // Layers go compressed, and the store has them so from then on: the next push has nothing to do.
    let after = images.print(&["inspect", "ours:1"]);
    assert!(
        after.contains(&format!("\"Digest\": \"{digest}\"")) && after.matches("tar+gzip\"").count() == 3,
        "{after}"
    );
    assert_eq!(images.run(&["ours:1"]), "b\nhello");
    assert_eq!(images.print(&["push", "ours:1", &name]), pushed);
    images.print(&["gc"]);
    assert_eq!(fs::read_dir(Path::new(STORE).join("blobs/sha256")).unwrap().count(), 5);
    images.print(&["rm", "ours:1"]);
    assert_eq!(images.held(), [] as [std::path::PathBuf; 0]);
    let pulled = images.print(&["pull", &name]);
    assert!(pulled.starts_with(&format!("{name} sha256:")) && details.contains(&id(&pulled)), "{pulled}");
    assert_eq!(images.run(&[&name]), "b\nhello");
    // By its digest, and from a script that knows docker's way to say it.
    let by_digest = format!("{host}/some/ours@{digest}");
    assert_eq!(images.print(&["pull", &format!("docker://{by_digest}")]), format!("{by_digest} {}\n", id(&pulled)));
    assert_eq!(images.run(&[&by_digest, "hostname"]), "ours\n");
    // What is there already is not fetched: the registry has lost it in the meantime.
    let data = images.tree.beside("registry/data");
    sh(&format!("find {} -name data -size +100k -delete", data.display()));
    assert_eq!(images.print(&["pull", &name]), pulled);
}

#[test]
fn a_layer_that_another_path_of_the_registry_has_is_taken_from_there() {
    let Some((images, registry)) = ours("", "") else { return };
    let (first, second) = (format!("{}/one:1", registry.host), format!("{}/two/three:1", registry.host));
    images.print(&["push", "ours:1", &first]);
    images.print(&["tag", "ours:1", &first]);
    let blobs =
        |path: &str| images.tree.beside(&format!("registry/data/docker/registry/v2/repositories/{path}/_uploads"));
    images.print(&["push", &first, &second]);
    // Who uploads makes this folder.
    assert!(blobs("one").exists() && !blobs("two/three").exists());
    images.print(&["rm", "ours:1", &first]);
    images.print(&["pull", &second]);
    assert_eq!(images.run(&[&second]), "b\nhello");
}

#[test]
fn skopeo_and_podman_pull_what_is_pushed() {
    if tools::find("skopeo").is_none() || tools::find("podman").is_none() {
        return;
    }
    let Some((images, registry)) = ours("", "") else { return };
    let name = format!("{}/ours:1", registry.host);
    let digest = images.print(&["push", "ours:1", &name]).trim().split_once('@').unwrap().1.to_owned();
    // It checks every digest on the way.
    output(&images, &format!("skopeo copy -q --src-tls-verify=false docker://{name} dir:copy"));
    let seen =
        output(&images, &format!("skopeo inspect --tls-verify=false --format '{{{{.Digest}}}}' docker://{name}"));
    assert_eq!(seen.trim(), digest);
    let options = "--root=$PWD/storage --runroot=$PWD/runroot --storage-driver=vfs";
    let script = format!("podman {options} pull -q --tls-verify=false {name}");
    let details = images.print(&["inspect", "ours:1"]);
    let theirs = output(&images, &script);
    assert!(details.contains(&format!("\"Id\": \"sha256:{}\"", theirs.trim())), "{theirs}");
}

#[test]
fn what_skopeo_pushes_is_pulled_in_every_form() {
    if tools::find("skopeo").is_none() {
        return;
    }
    let Some((images, registry)) = ours("", "") else { return };
    images.print(&["export", "ours:1", "--format", "oci", "-o", "layout"]);
    let expected = images.run(&["ours:1"]);
    images.print(&["rm", "ours:1"]);
    for (number, options) in [
        "",
        "--format=v2s2",
        "--dest-compress --dest-compress-format=zstd",
        "--dest-compress --dest-compress-format=gzip --format=v2s2",
    ]
    .iter()
    .enumerate()
    {
        let name = format!("{}/theirs:{number}", registry.host);
        output(&images, &format!("skopeo copy -q --dest-tls-verify=false {options} oci:layout:ours:1 docker://{name}"));
        images.print(&["pull", &name]);
        assert_eq!(images.run(&[&name]), expected, "{options}");
        // By the digest that skopeo sees.
        let format = "{{.Name}}@{{.Digest}}";
        let by_digest =
            output(&images, &format!("skopeo inspect --tls-verify=false --format '{format}' docker://{name}"));
        images.print(&["pull", by_digest.trim()]);
    }
    // However they are compressed, the layers are the same ones, and there once.
    assert_eq!(fs::read_dir(Path::new(STORE).join("layers")).unwrap().count(), 3);
}

#[test]
fn one_of_several_platforms_is_chosen() {
    if tools::find("buildah").is_none() {
        return;
    }
    let Some((images, registry)) = ours("", "") else { return };
    let name = format!("{}/many:1", registry.host);
    let buildah = "buildah --root=$PWD/storage --runroot=$PWD/runroot --storage-driver=vfs manifest";
    output(&images, &format!("{buildah} create many"));
    let mut ids = Vec::new();
    for (number, platform) in ["--arch amd64", "--arch arm64", "--arch arm --variant v7"].iter().enumerate() {
        let (one, place) = (format!("one{number}"), format!("{}/many:{number}", registry.host));
        images.docker(&one, &format!(r#"{{"User":"{number}"}}"#), &[images.base()]);
        ids.push(id(&images.print(&["import", &one])));
        images.print(&["push", &format!("{one}:1"), &place]);
        output(&images, &format!("{buildah} add --os linux {platform} --tls-verify=false many docker://{place}"));
    }
    output(&images, &format!("{buildah} push -q --all --tls-verify=false many docker://{name}"));
    assert_eq!(id(&images.print(&["pull", &name])), ids[0]);
    let arm = images.image(&["pull", "--platform", "linux/arm/v7", &name]);
    assert_eq!((arm.status, id(&arm.stdout)), (Some(0), ids[2].clone()), "{arm:?}");
    assert!(arm.stderr.contains("is for linux/amd64, not for linux/arm/v7"), "{arm:?}");
    let outcome = images.image(&["pull", "--platform", "linux/s390x", &name]);
    assert_eq!(outcome.status, Some(125));
    let reason = "there is no image for linux/s390x (--platform with one of linux/amd64, linux/arm64, linux/arm/v7)";
    assert!(outcome.stderr.contains(reason), "{outcome:?}");
}

#[test]
fn a_registry_that_asks_for_a_password_gets_it_from_where_others_keep_it() {
    if tools::find("skopeo").is_none() {
        return;
    }
    let Some(images) = Images::new() else { return };
    let place = images.tree.beside("registry");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("htpasswd"), HTPASSWD).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {}/htpasswd}}}}", place.display());
    let Some(registry) = Registry::start(&place, &auth, "") else { return };
    let (host, name) = (registry.host.clone(), format!("{}/ours:1", registry.host));
    images.docker("ours", CONFIG, &[images.base(), images.layer(&[("etc/motd", "hello")])]);
    images.print(&["import", "ours"]);
    let home = images.tree.beside("home");
    let as_user = |words: &[&str], input: &str| -> Outcome {
        let mut command = Command::new("sh");
        command.args(["-c", "printf %s \"$0\" | \"$@\"", input, RLAUNCH, "image"]).args(words);
        finish(command.env("HOME", &home).env_remove("XDG_RUNTIME_DIR").env_remove("REGISTRY_AUTH_FILE"))
    };
    let refused = as_user(&["push", "ours:1", &name], "");
    assert_eq!(refused.status, Some(125));
    assert!(refused.stderr.contains(&format!("if the name is right: rlaunch image login {host}")), "{refused:?}");
    let wrong = as_user(&["login", "-u", NAME, "--password-stdin", &host], "wrong");
    assert!(wrong.status == Some(125) && wrong.stderr.contains("it answers 'UNAUTHORIZED"), "{wrong:?}");
    // As an option.
    let creds = format!("{NAME}:{PASSWORD}");
    assert_eq!(as_user(&["push", "--creds", &creds, "ours:1", &name], "").status, Some(0));
    // As login keeps it, where skopeo finds it as well.
    let login = as_user(&["login", "-u", NAME, "--password-stdin", &host], &format!("{PASSWORD}\n"));
    assert_eq!(login.stdout, format!("logged in to {host} as {NAME}\n"), "{login:?}");
    let kept = Path::new("/run/containers/0/auth.json");
    assert_eq!(fs::metadata(kept).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(as_user(&["pull", &name], "").status, Some(0));
    let look = format!("skopeo inspect --tls-verify=false --authfile {} docker://{name}", kept.display());
    assert!(output(&images, &look).contains("\"Digest\""));
    assert_eq!(as_user(&["logout", &host], "").stdout, format!("logged out of {host}\n"));
    let nobody = as_user(&["logout", &host], "");
    assert!(nobody.status == Some(125) && nobody.stderr.contains("nobody is logged in"), "{nobody:?}");
    assert_eq!(as_user(&["pull", &name], "").status, Some(125));
    // Root may have a session, too.
    let session = images.tree.beside("session");
    fs::create_dir(&session).unwrap();
    let mut login = Command::new(RLAUNCH);
    login.args(["image", "login", "-u", NAME, "-p", PASSWORD, &host]).env("XDG_RUNTIME_DIR", &session);
    assert_eq!(finish(&mut login).status, Some(0));
    let look = format!("XDG_RUNTIME_DIR={} skopeo inspect --tls-verify=false docker://{name}", session.display());
    assert!(output(&images, &look).contains("\"Digest\""));
    assert!(!kept.exists() || !fs::read_to_string(kept).unwrap().contains(&host));
    // As skopeo and docker keep it.
    let login = "skopeo login --tls-verify=false --authfile";
    for file in [home.join(".docker/config.json"), home.join(".config/containers/auth.json"), home.join("named.json")] {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        output(&images, &format!("{login} {} -u {NAME} -p {PASSWORD} {host}", file.display()));
        let named = ["pull", "--authfile", file.to_str().unwrap(), &name];
        let words = if file.ends_with("named.json") { &named[..] } else { &["pull", &name] };
        assert_eq!(as_user(words, "").status, Some(0), "{}", file.display());
        fs::remove_file(file).unwrap();
    }
    // As a helper of docker's says.
    let helper = home.join("docker-credential-test");
    fs::write(&helper, format!("#!/bin/sh\nread host; echo '{{\"Username\":\"{NAME}\",\"Secret\":\"{PASSWORD}\"}}'\n"))
        .unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(home.join(".docker/config.json"), r#"{"credsStore":"test"}"#).unwrap();
    let path = format!("{}:{}", home.display(), std::env::var("PATH").unwrap());
    let outcome = finish(Command::new(RLAUNCH).args(["image", "pull", &name]).env("HOME", &home).env("PATH", path));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
}

#[test]
fn a_registry_proves_who_it_is() {
    if tools::find("openssl").is_none() {
        return;
    }
    let Some(images) = Images::new() else { return };
    let place = images.tree.beside("registry");
    fs::create_dir(&place).unwrap();
    sh(&format!(
        "cd {}; exec 2>/dev/null
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=test
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout own.key -out own.csr -subj /CN=localhost
        printf 'subjectAltName=DNS:localhost\\n' > own.ext
        openssl x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out own.pem -days 2 -extfile own.ext
        mkdir certs; cp ca.pem certs/ca.crt",
        place.display()
    ));
    let tls = format!("  tls: {{certificate: {0}/own.pem, key: {0}/own.key}}", place.display());
    let Some(registry) = Registry::start(&place, "", &tls) else { return };
    let name = format!("{}/ours:1", registry.host);
    images.docker("ours", CONFIG, &[images.base(), images.layer(&[("etc/motd", "hello")])]);
    images.print(&["import", "ours"]);
    let refused = images.image(&["push", "--tls-verify", "ours:1", &name]);
    assert_eq!(refused.status, Some(125));
    assert!(refused.stderr.contains("certificate") && refused.stderr.contains("--cert-dir"), "{refused:?}");
    let certificates = place.join("certs").display().to_string();
    images.print(&["push", "--cert-dir", &certificates, "ours:1", &name]);
    // A certificate is for a name.
    let other = name.replace("localhost", "127.0.0.1");
    assert_eq!(images.image(&["pull", "--cert-dir", &certificates, &other]).status, Some(125));
    // Anybody is taken where that is asked for, and on this machine.
    images.print(&["pull", "--tls-verify=false", &other]);
    images.print(&["pull", &other]);
    // Where such certificates usually are.
    let usual = Path::new("/etc/docker/certs.d").join(&registry.host);
    harness::sandbox::run(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/etc/docker"]).env("LC_ALL", "C"));
    fs::create_dir_all(&usual).unwrap();
    fs::copy(place.join("ca.pem"), usual.join("ca.crt")).unwrap();
    images.print(&["pull", "--tls-verify", &name]);
}

#[test]
fn an_ordinary_user_pulls_and_pushes() {
    if !again(Way::Fusermount, "an_ordinary_user_pulls_and_pushes") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    let Some(registry) = Registry::start(&tree.beside("registry"), "", "") else { return };
    let name = format!("{}/user/ours:1", registry.host);
    let image = |words: &[&str]| {
        let mut command = Command::new(RLAUNCH);
        command.args(words).current_dir(tree.beside("")).env("XDG_DATA_HOME", tree.beside("data"));
        let outcome = finish(&mut command);
        assert_eq!(outcome.status, Some(0), "{words:?}: {outcome:?}");
        outcome.stdout
    };
    image(&["image", "import", "tree"]);
    image(&["image", "push", "tree", &name]);
    image(&["image", "rm", "tree"]);
    image(&["image", "pull", &name]);
    assert_eq!(image(&["run", "--image", &name, "sh", "-c", "id -u; cat /etc/passwd | wc -l"]), "0\n1\n");
}

#[test]
fn progress_is_shown_on_a_terminal_alone_and_is_gone_in_the_end() {
    let Some((images, registry)) = ours("", "") else { return };
    let name = format!("{}/ours:1", registry.host);
    for words in [format!("push ours:1 {name}"), format!("pull {name}"), "import ours".to_owned()] {
        let seen = |options: &str| {
            // What is there already is not fetched.
            if !words.starts_with("push") {
                for one in ["ours:1", &name] {
                    images.image(&["rm", one]);
                }
            }
            let command = format!("stty cols 80; {RLAUNCH} image {words} {options}");
            let outcome = finish(
                Command::new("script")
                    .args(["-qec", &command, "/dev/null"])
                    .current_dir(images.tree.beside(""))
                    .env("TERM", "xterm"),
            );
            assert_eq!(outcome.status, Some(0), "{command}: {outcome:?}");
            outcome.stdout
        };
        let with = seen("");
        // docker's archives do not say how long a layer is.
        let has_bar = with.contains('█') || words.starts_with("import");
        assert!(has_bar && with.contains("MiB"), "{words}: {with}");
        // The line of the result begins where the bars were, after they were erased.
        let last = with.trim_end().rsplit(['\r', '\n', '\u{1b}']).next().unwrap().to_owned();
        assert!(!last.contains('█') && last.contains("sha256:"), "{words}: {with}");
        let without = seen("--quiet");
        assert!(!without.contains(['█', '\u{1b}']) && without.lines().count() == 1, "{words}: {without}");
    }
}

#[test]
fn who_names_what_is_not_there_is_told_what_to_do() {
    let Some(images) = Images::new() else { return };
    let outcome = finish(Command::new(RLAUNCH).args(["run", "--image", "debian:12", "true"]));
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(125), 1), "{outcome:?}");
    assert_eq!(outcome.stderr, "rlaunch: there is no image debian:12 (rlaunch image pull debian:12 gets it)\n");
    // Nobody listens there.
    let outcome = images.image(&["pull", "127.0.0.1:1/x"]);
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(125), 1), "{outcome:?}");
    assert!(outcome.stderr.contains("the registry 127.0.0.1:1: Connection refused"), "{outcome:?}");
    for name in ["UPPER", "a b", "h.x:port/a", ""] {
        let outcome = images.image(&["pull", name]);
        assert!(
            outcome.status == Some(125) && outcome.stderr.contains("is no name of an image in a registry"),
            "{outcome:?}"
        );
    }
}
