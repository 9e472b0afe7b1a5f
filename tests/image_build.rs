//! A Dockerfile becomes an image: as docker's reference says, one layer for each step that changes files, none done twice.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::mount::{Outcome, finish, poll};
use harness::rootless::{Way, again};

#[path = "support/building.rs"]
mod building;
#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use building::Building;
use images::STORE;
use launch::{PATIENCE, RLAUNCH, Running, Tree, sh, wait_until_gone};

/// What lies in a directory of the store.
fn stored(name: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        fs::read_dir(Path::new(STORE).join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// All that is said of the files of a directory.
fn seen(path: &Path) -> String {
    let look = "find . -printf '%P %y %m %U %G %s %T@ %C@ %n %l\\n' | sort";
    finish(Command::new("sh").args(["-c", look]).current_dir(path)).stdout
}

#[test]
fn a_dockerfile_of_the_usual_form_is_built_and_runs() {
    let Some(building) = Building::new() else { return };
    building.prepare("echo 'print(\"hello\")' > app.py; echo flask > requirements.txt");
    let base = stored("layers");
    let before = seen(&base[0]);
    building.says(
        "# Use a runtime as a parent image\nFROM base:1\n\n# Set the working directory to /app\nWORKDIR /app\n\n\
         ADD . /app\n\nRUN mkdir /lib; \\\n    # what is needed\n    cp requirements.txt /lib/installed; echo 1.2.3.4 x >> /etc/hosts\n\n\
         EXPOSE 80\n\nENV NAME World\n\nCMD [\"cat\", \"app.py\", \"/lib/installed\"]\n",
    );
    let outcome = building.build(&["-t", "hello", "-t", "again:2"]);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!((lines[0], lines[1]), ("Step 1/7 : FROM base:1", "Step 2/7 : WORKDIR /app"));
    assert!(lines[lines.len() - 3].starts_with("Successfully built sha256:"), "{lines:?}");
    assert_eq!(lines[lines.len() - 2..], ["Successfully tagged hello:latest", "Successfully tagged again:2"]);
    assert_eq!(building.images.run(&["hello"]), "print(\"hello\")\nflask\n");
    assert_eq!(building.images.run(&["again:2", "sh", "-c", "echo $NAME $OLD; pwd"]), "World 1\n/app\n");
    // Three steps have changed files, and what is the container's own is in none of them.
    assert_eq!(stored("layers").len(), 4);
    assert!(stored("layers").iter().all(|layer| !layer.join("layer/etc/hosts").exists()));
    assert_eq!(seen(&base[0]), before, "the base was written");
    let history = building.images.print(&["history", "hello"]);
    let first = history.lines().nth(1).unwrap();
    assert!(first.contains("0 B") && first.contains("CMD [\"cat\", \"app.py\", \"/lib/installed\"]"), "{history}");
    let details = building.images.print(&["inspect", "hello"]);
    assert!(details.contains("\"80/tcp\": {}") && details.contains("\"of\": \"base\""), "{details}");
    // A step that changes nothing makes no layer.
    building.made("FROM hello\nRUN true\nWORKDIR /app\nLABEL a=b\n");
    assert_eq!(stored("layers").len(), 4);
}

const STAGES: &str = "ARG BASE=wrong:1\nFROM $BASE AS Builder\nARG WHO=nobody\nARG VERSION\nENV GREETING=\"hello ${WHO:-x}\"\nWORKDIR /src\n\
    COPY *.txt ./\nRUN echo \"$GREETING from $WHO, $VERSION\" > out && ln out twin && chown web:web out\n\
    FROM scratch AS unused\nRUN nobody runs this\n\
    FROM base:1\nUSER web\nWORKDIR /home/w\nRUN id -un > /tmp.me 2>/dev/null || echo \"$(id -un) $HOME $PWD\" > me\nUSER root\n\
    COPY --from=builder /src/out /data/\nCOPY --from=0 /src /copy\nCOPY --chown=web:ops --chmod=640 a.txt /owned/x\n\
    COPY --chown=7 a.txt b.txt relative/\nCOPY dir /dir\nCOPY dir/sub/d inlink /flat/\nCOPY [\"a.txt\", \"/with space/\"]\n\
    COPY a.txt /bin/link-to-dir\nSHELL [\"/bin/ash\", \"-euc\"]\nRUN echo $0 > /shell\nRUN [\"cp\", \"/shell\", \"/exec\"]\n";

#[test]
fn stages_copies_and_owners_are_as_dockers_reference_says() {
    let Some(building) = Building::new() else { return };
    building.prepare(
        "mkdir -p dir/sub; echo a > a.txt; echo b > b.txt; echo c > dir/c; echo d > dir/sub/d; chmod 750 dir dir/sub; chmod 4755 dir/c
        ln dir/c dir/hard; ln -s dir/c inlink; ln -s /etc/nothing dir/dangling; setfattr -n user.x -v y dir/c; touch -d @1000000000 a.txt dir/sub; mkfifo dir/fifo",
    );
    building.says(STAGES);
    let outcome = building.build(&[
        "-t",
        "made",
        "--build-arg",
        "BASE=base:1",
        "--build-arg",
        "VERSION=3",
        "--build-arg",
        "NEVER=1",
    ]);
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("nothing in context/Dockerfile asks for the argument NEVER"), "{outcome:?}");
    assert!(!outcome.stdout.contains("unused"), "what nobody needs is not built: {outcome:?}");
    assert_eq!(
        building.look("cat /data/out /home/w/me /shell /exec"),
        "hello nobody from nobody, 3\nweb /home/web /home/w\n/bin/ash\n/bin/ash\n"
    );
    let stat = |names: &str| building.look(&format!("cd /; stat -c '%n %A %u:%g %h' {names}"));
    assert_eq!(
        stat(
            "home/w data data/out copy/out copy/twin owned owned/x home/w/relative/a.txt home/w/relative dir dir/sub dir/c dir/hard flat/inlink dir/fifo"
        ),
        "home/w drwxr-xr-x 33:34 1\ndata drwxr-xr-x 0:0 2\ndata/out -rw-r--r-- 33:34 1\ncopy/out -rw-r--r-- 33:34 2\n\
         copy/twin -rw-r--r-- 33:34 2\nowned drwxr-xr-x 33:40 2\nowned/x -rw-r----- 33:40 1\nhome/w/relative/a.txt -rw-r--r-- 7:7 1\n\
         home/w/relative drwxr-xr-x 7:7 2\ndir drwxr-x--- 0:0 3\ndir/sub drwxr-x--- 0:0 2\ndir/c -rwsr-xr-x 0:0 2\n\
         dir/hard -rwsr-xr-x 0:0 2\nflat/inlink -rwsr-xr-x 0:0 1\ndir/fifo prw-r--r-- 0:0 1\n"
    );
    assert_eq!(
        building.look("cat '/with space/a.txt' /flat/d /copy/b.txt; readlink /dir/dangling"),
        "a\nd\nb\n/etc/nothing\n"
    );
    assert_eq!(building.look("stat -c %Y /owned/x /dir/sub"), "1000000000\n1000000000\n");
    let attributed = stored("layers")
        .iter()
        .filter(|layer| {
            finish(Command::new("getfattr").args(["-n", "user.x"]).arg(layer.join("layer/dir/c"))).status == Some(0)
        })
        .count();
    assert_eq!(attributed, 1);
    // Only what a stage needs is built, and it may be named.
    building.says(STAGES);
    let target = building.build(&["-q", "-t", "made", "--target", "BUILDER", "--build-arg", "BASE=base:1"]);
    assert!(
        target.status == Some(0) && target.stdout.starts_with("sha256:") && target.stdout.lines().count() == 1,
        "{target:?}"
    );
    assert_eq!(building.look("ls /src; test -e /data || echo none"), "a.txt\nb.txt\nout\ntwin\nnone\n");
}

#[test]
fn a_copy_goes_where_docker_puts_it() {
    let Some(building) = Building::new() else { return };
    building.prepare(
        "mkdir -p d/sub e; echo f > f; echo g > g; echo x > d/x; echo y > d/sub/y; echo h > e/x; echo z > '[z]'",
    );
    building.made(
        "FROM base:1\nRUN mkdir -p /there/sub /real; ln -s /real /link; ln -s ../../../real/up /there/up; echo old > /there/old; ln -s old /there/l\n\
         COPY f /new\nCOPY f /deep/er/new\nCOPY f /there\nCOPY d /there\nCOPY f /link/in\nCOPY f /there/up\nCOPY g /there/l\n\
         COPY d e /both/\nCOPY d/* /glob/\nCOPY [[]z] /glob/\nCOPY ../../f /up/\nCOPY f .\nCOPY . /whole\n",
    );
    let look = "for f in /new /deep/er/new /there/f /there/x /there/sub/y /real/in /real/up /there/old /both/x /both/sub/y /glob/x /glob/y '/glob/[z]' /up/f /f /whole/d/sub/y; do echo \"$f $(cat \"$f\")\"; done; readlink /there/l";
    assert_eq!(
        building.look(look),
        "/new f\n/deep/er/new f\n/there/f f\n/there/x x\n/there/sub/y y\n/real/in f\n/real/up f\n/there/old g\n/both/x h\n/both/sub/y y\n\
         /glob/x x\n/glob/y y\n/glob/[z] z\n/up/f f\n/f f\n/whole/d/sub/y y\nold\n"
    );
    for (copy, why) in [
        ("COPY f g /new", "several files are copied to /new, which is no directory (end it with a slash)"),
        ("COPY [fg] /new", "several files are copied to /new, which is no directory (end it with a slash)"),
        ("COPY nothing /new", "there is no nothing, or it is left out by .dockerignore"),
        ("COPY f/x /new", "there is no f/x"),
        ("COPY *.none /new", "there is no *.none"),
        ("COPY [ /new", "a bracket is not closed"),
        ("COPY d /etc/passwd", "/etc/passwd: Not a directory"),
        ("COPY f /etc/passwd/x", "/etc/passwd/x: Not a directory"),
        ("COPY --chown=nobody9 f /x", "there is no user or group nobody9 in the image"),
        ("COPY --from=none:1 f /x", "there is no image none:1"),
    ] {
        let said = building.refused(&format!("FROM base:1\n{copy}\n"));
        assert!(
            said.starts_with(&format!("rlaunch: context/Dockerfile:2: {copy}")) && said.contains(why),
            "{copy}: {said}"
        );
    }
}

#[test]
fn what_was_done_before_is_not_done_again() {
    let Some(building) = Building::new() else { return };
    building.prepare("echo 1 > a; echo 1 > b");
    let uuid = "cat /proc/sys/kernel/random/uuid";
    let text = format!(
        "FROM base:1\nARG X=1\nRUN {uuid} > /one\nCOPY a /a\nENV E=e\nRUN {uuid} > /two\nARG Y\nRUN {uuid} > /three\nCMD [\"sh\"]\n"
    );
    let build = |words: &[&str]| {
        let outcome = building.build(&[&["-t", "made"], words].concat());
        assert_eq!(outcome.status, Some(0), "{outcome:?}");
        let id = outcome.stdout.split("Successfully built ").nth(1).unwrap().lines().next().unwrap().to_owned();
        (id, building.look("cat /one; cat /two; cat /three").lines().map(str::to_owned).collect::<Vec<_>>())
    };
    building.says(&text);
    let (id, first) = build(&[]);
    // All of it, the image with its date included; a file's time is not its content.
    building.prepare("touch -d @5 a");
    assert_eq!(build(&[]), (id.clone(), first.clone()));
    let differ =
        |second: &[String]| -> Vec<bool> { first.iter().zip(second).map(|(one, other)| one != other).collect() };
    // Content, a mode, an argument that is used, and what an earlier step depends on.
    building.prepare("echo 2 > a");
    assert_eq!(differ(&build(&[]).1), [false, true, true]);
    building.prepare("echo 1 > a; chmod 600 a");
    assert_eq!(differ(&build(&[]).1), [false, true, true]);
    building.prepare("chmod 644 a; echo 2 > b");
    assert_eq!(build(&[]).1, first, "nobody has copied b");
    assert_eq!(differ(&build(&["--build-arg", "Y=1"]).1), [false, false, true]);
    assert_eq!(differ(&build(&["--build-arg", "X=2"]).1), [true, true, true]);
    assert_eq!(build(&["--build-arg", "HTTP_PROXY=http://127.0.0.1:9"]).1, first, "who the proxy is changes nothing");
    assert_eq!(differ(&build(&["--net", "none"]).1), [true, true, true]);
    building.says(&text.replace("ENV E=e", "ENV E=f"));
    assert_eq!(differ(&build(&[]).1), [false, true, true]);
    building.says(&text);
    assert_eq!(differ(&build(&["--no-cache"]).1), [true, true, true]);
    // What was made last is what is known; rm leaves it, gc does not.
    let (_, last) = build(&[]);
    building.images.print(&["rm", "made"]);
    assert_eq!(build(&[]).1, last);
    let ids = building.images.print(&["ls"]);
    for line in ids.lines().filter(|line| line.starts_with("<none>") || line.starts_with("made")) {
        building.images.image(&["rm", "--force", line.split_whitespace().nth(1).unwrap()]);
    }
    building.images.print(&["gc"]);
    assert_eq!((stored("layers").len(), stored("cache").len()), (1, 0));
    assert_ne!(build(&[]).1, last);
}

#[test]
fn what_has_changed_while_it_was_copied_is_not_remembered() {
    let Some(building) = Building::new() else { return };
    building.prepare("truncate -s 48M a; echo old > b");
    building.says("FROM base:1\nCOPY a b /x/\nRUN cp /x/b /c\n");
    let running = Running::begin(&mut building.command(&["-q", "-t", "other", "context"]));
    // The digest is known by now, and what comes first is on its way.
    let is_copied = |top: &PathBuf| top.join("x/a").exists();
    let tops = || stored("tmp").into_iter().flat_map(|path| fs::read_dir(path).into_iter().flatten());
    assert!(
        poll(PATIENCE, || tops().map(|entry| entry.unwrap().path()).any(|top| is_copied(&top)).then_some(())).is_some()
    );
    building.prepare("echo new > b");
    assert_eq!(running.wait().0, Some(0));
    building.prepare("echo old > b");
    assert_eq!(building.build(&["-t", "made"]).status, Some(0));
    assert_eq!(building.look("cat /x/b /c"), "old\nold\n");
}

#[test]
fn what_is_built_does_not_depend_on_the_umask_of_who_builds() {
    let Some(building) = Building::new() else { return };
    building.says("FROM base:1\nRUN mkdir /d; umask\n");
    let build = format!("umask 077; exec {RLAUNCH} image build -t made context");
    let outcome = finish(Command::new("sh").args(["-c", &build]).current_dir(building.images.tree.beside("")));
    assert!(outcome.status == Some(0) && outcome.stdout.contains("\n0022\n"), "{outcome:?}");
    assert_eq!(building.look("stat -c %a /d"), "755\n");
}

#[test]
fn what_is_said_of_a_command_may_look_like_an_option() {
    let Some(building) = Building::new() else { return };
    // A variable without a value is none, and least of all that of who builds.
    building.images.docker("odd", r#"{"Env":["PATH=/bin","RLAUNCH_TEST_SECRET"]}"#, &[building.images.base()]);
    building.images.print(&["import", "odd"]);
    building.says("FROM odd:1\nENV --x=1\nRUN [\"env\"]\n");
    let outcome = finish(building.command(&["-t", "made", "context"]).env("RLAUNCH_TEST_SECRET", "told"));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    assert!(outcome.stdout.contains("\n--x=1\n") && !outcome.stdout.contains("SECRET"), "{outcome:?}");
    let refused = building.refused("FROM base:1\nUSER --privileged\nRUN true\n");
    assert!(refused.contains("cannot find --privileged"), "{refused}");
}

#[test]
fn what_is_ignored_is_not_copied() {
    let Some(building) = Building::new() else { return };
    building.prepare(
        "mkdir -p node_modules/a docs/deep src/x; touch node_modules/a/b docs/a.md docs/README.md docs/deep/keep.md src/x/a.o src/x/a.c top.o secret
        printf '# no\\nnode_modules\\n**/*.o\\ndocs\\n!docs/README.md\\n!docs/deep\\nsecret\\nDockerfile\\n' > .dockerignore",
    );
    building.made("FROM base:1\nCOPY . /all\nCOPY src /src\nCOPY docs /docs\n");
    let found = "cd /; find all src docs | sort";
    assert_eq!(
        building.look(found),
        "all\nall/.dockerignore\nall/docs\nall/docs/README.md\nall/docs/deep\nall/docs/deep/keep.md\nall/src\nall/src/x\nall/src/x/a.c\n\
         docs\ndocs/README.md\ndocs/deep\ndocs/deep/keep.md\nsrc\nsrc/x\nsrc/x/a.c\n"
    );
    building.prepare("ln -s secret alias");
    for source in ["secret", "node_modules", "top.o", "alias", "s*t"] {
        let said = building.refused(&format!("FROM base:1\nCOPY {source} /x/\n"));
        assert!(said.contains("left out by .dockerignore"), "{source}: {said}");
    }
    // One beside the Dockerfile counts before that of the context.
    building.prepare("echo docs > Dockerfile.dockerignore");
    building.made("FROM base:1\nCOPY . /all\n");
    assert_eq!(
        building.look("cd /all; ls"),
        "Dockerfile\nDockerfile.dockerignore\nalias\nnode_modules\nsecret\nsrc\ntop.o\n"
    );
    building.prepare("echo '!' > Dockerfile.dockerignore");
    assert!(
        building.refused("FROM base:1\n").contains("Dockerfile.dockerignore: line 1: there is no pattern behind the !")
    );
}

#[test]
fn nothing_outside_of_the_context_is_reached() {
    let Some(building) = Building::new() else { return };
    let outside = building.images.tree.beside("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let path = outside.display();
    building.prepare(&format!(
        "ln -s {path} away; ln -s ../outside up; ln -s {path}/secret file; ln -s / root; ln -s loop loop; mkdir deep; ln -s ../../../../../..{path} deep/up"
    ));
    for source in [
        "away",
        "away/secret",
        "up",
        "up/secret",
        "file",
        "root/etc/passwd",
        "../outside/secret",
        "loop",
        "deep/up/secret",
        "*/secret",
        "/proc/self/environ",
    ] {
        let said = building.refused(&format!("FROM base:1\nCOPY {source} /x/\n"));
        assert!(said.contains("there is no") || said.contains("Too many symbolic links"), "{source}: {said}");
    }
    // Links that are copied along stay links, and what is copied over one stays in the image.
    building.made(&format!("FROM base:1\nCOPY . /x\nCOPY Dockerfile {path}/out\nRUN ln -s {path} /l; ln -s /../../..{path} /m\nCOPY Dockerfile /l/two\nCOPY Dockerfile /m/three\n"));
    assert_eq!(building.look(&format!("ls {path}; readlink /x/away")), format!("out\nthree\ntwo\n{path}\n"));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    // The root of the context in the image is that of the link.
    building.made("FROM base:1\nCOPY root /y\n");
    assert_eq!(building.look("ls /y/deep"), "up\n");
}

#[test]
fn archives_are_unpacked_by_add() {
    let Some(building) = Building::new() else { return };
    building.prepare(
        "mkdir p; echo p > p/p; ln p/p p/q; ln -s p p/l; mkdir p/e; chown 5:6 p/p; chmod 2711 p/e; touch -d @1000 p/e; setfattr -n user.k -v v p/p; mkfifo p/fifo
        tar --xattrs -C p -cf plain.tar .; tar -C p -czf zipped.tgz .; tar -C p --zstd -cf z.tar.zst .; tar -C p -cJf x.tar.xz .
        head -c 20000 /dev/urandom > r; tar -czf large.tgz r; head -c 9000 large.tgz > cut.tgz
        rm -r p r; echo text > text; gzip -k text; head -c 60 zipped.tgz > broken.tgz
        mkdir h; echo h > h/x; tar -P --transform 's,h/x,../../up,' -cf up.tar h/x; ln -s /evil h/l; tar -cf link.tar -C h l; mkdir -p i/l; echo i > i/l/in; tar -rf link.tar -C i l/in",
    );
    building.made(
        "FROM base:1\nADD plain.tar /plain\nADD zipped.tgz z.tar.zst /zipped/\nADD --chown=web text.gz broken.tgz /as/\nADD --chown=web plain.tar /owned\n\
         COPY plain.tar /copied\nADD link.tar /linked\n",
    );
    let look = "cd /; stat -c '%n %A %u:%g %h' plain/p plain/q plain/e zipped/p owned/p as/text.gz as/broken.tgz copied; readlink plain/l; stat -c %Y plain/e; ls -l plain/fifo | cut -c1; cat evil/in";
    assert_eq!(
        building.look(look),
        "plain/p -rw-r--r-- 5:6 2\nplain/q -rw-r--r-- 5:6 2\nplain/e drwx--s--x 0:0 2\nzipped/p -rw-r--r-- 5:6 2\nowned/p -rw-r--r-- 33:34 2\n\
         as/text.gz -rw-r--r-- 33:34 1\nas/broken.tgz -rw-r--r-- 33:34 1\ncopied -rw-r--r-- 0:0 1\np\n1000\np\ni\n"
    );
    for (archive, why) in [
        ("cut.tgz", "r: "),
        ("up.tar", "it leads out of the directory"),
        ("x.tar.xz", "it is compressed by xz, which is not read here (use buildah, or COPY)"),
    ] {
        let said = building.refused(&format!("FROM base:1\nADD {archive} /x\n"));
        assert!(said.contains(why), "{archive}: {said}");
    }
    assert!(!building.images.tree.beside("up").exists());
}

#[test]
fn what_is_not_built_here_says_where_and_what_to_do() {
    let Some(building) = Building::new() else { return };
    for (line, why) in [
        ("ADD https://example.org/x /x", "use buildah"),
        ("RUN --mount=type=cache,target=/x true", "use buildah"),
        ("ONBUILD RUN true", "use buildah"),
        ("COPY --parents a b", "use buildah"),
        ("COPY <<EOF /x\\\nEOF", "does not end"),
        ("FROM --platform=linux/s390x base:1", "only for linux/"),
        ("NOSUCH thing", "there is no instruction NOSUCH"),
        ("ENV A=\"b", "a double quote is not closed"),
        ("USER a:b:c", "no colon"),
        ("EXPOSE http", "http is no port"),
        ("WORKDIR /etc/passwd", "Not a directory"),
    ] {
        let said = building.refused(&format!("# one\n\nFROM base:1\n{line}\n"));
        assert!(said.starts_with("rlaunch: context/Dockerfile:4: ") && said.contains(why), "{line}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let far = building.refused("FROM base:1\nARG U=https://x\nADD $U/y /x\n");
    assert!(far.contains("context/Dockerfile:3:") && far.contains("use buildah"), "{far}");
    assert!(building.refused("").contains("context/Dockerfile:1: there is no FROM"));
    assert!(building.refused("FROM none:1\n").contains("context/Dockerfile:1: there is no image none:1"));
    fs::write(building.path("Dockerfile"), b"FROM \xFF\n").unwrap();
    assert!(building.build(&[]).stderr.contains("it is no text in UTF-8"));
    fs::remove_file(building.path("Dockerfile")).unwrap();
    assert!(
        building.build(&[]).stderr.contains("cannot read context/Dockerfile: No such file"),
        "{:?}",
        building.build(&[])
    );
    let none = finish(building.command(&["nowhere"]).stdin(Stdio::null()));
    assert!(none.status == Some(125) && none.stderr.contains("cannot use the context nowhere"), "{none:?}");
    // An image may ask for steps of its own.
    building.images.docker("asks", r#"{"OnBuild":["RUN true"]}"#, &[building.images.base()]);
    building.images.print(&["import", "asks"]);
    assert!(building.refused("FROM asks:1\n").contains("ONBUILD"));
}

#[test]
fn a_dockerfile_may_come_from_anywhere() {
    let Some(building) = Building::new() else { return };
    fs::write(
        building.images.tree.beside("Other"),
        "FROM base:1\nRUN <<END\necho one > /one\necho \"$PWD\" >> /one\nEND\n",
    )
    .unwrap();
    let other = building.build(&["-q", "-t", "made", "-f", "Other"]);
    assert_eq!((other.status, other.stderr.as_str()), (Some(0), ""), "{other:?}");
    assert_eq!(building.look("cat /one"), "one\n/\n");
    let mut command = building.command(&["-q", "-t", "made", "-f", "-", "context"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(
        &mut child.stdin.take().unwrap(),
        b"# escape=`\nFROM base:1\nRUN echo a `\n  \\b > /two\nRUN cat <<X > /three\nx $OLD\nX\n",
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(building.look("cat /two /three"), "a b\nx 1\n");
    building.prepare("echo 'FROM base:1' > Containerfile");
    assert_eq!(building.build(&["-q"]).status, Some(0));
}

#[test]
fn a_command_that_fails_is_told_and_leaves_nothing() {
    let Some(building) = Building::new() else { return };
    building.says("FROM base:1\nRUN echo ok > /ok\nRUN echo said; echo told >&2; exit 7\nRUN never\n");
    let held = building.images.held();
    let outcome = building.build(&["-t", "made"]);
    assert_eq!(outcome.status, Some(7), "{outcome:?}");
    assert!(outcome.stdout.contains("\nsaid\n") && !outcome.stdout.contains("RUN never"), "{outcome:?}");
    let told = "told\nrlaunch: context/Dockerfile:3: RUN echo said; echo told >&2; exit 7: the command has ended with status 7\n";
    assert_eq!(outcome.stderr, told);
    // Quietly, what it has said is told only now.
    let quiet = building.build(&["-q"]);
    assert_eq!((quiet.status, quiet.stdout.as_str(), quiet.stderr), (Some(7), "", format!("said\n{told}")));
    assert!(building.images.image(&["inspect", "made"]).status != Some(0));
    building.images.print(&["gc"]);
    assert_eq!(building.images.held(), held);
    for (run, status) in [("RUN [\"nosuch\"]", 127), ("RUN [\"/etc/passwd\"]", 126), ("RUN kill -9 $$", 137)] {
        building.says(&format!("FROM base:1\n{run}\n"));
        assert_eq!(building.build(&["-q"]).status, Some(status), "{run}");
    }
    building.says("FROM scratch\nRUN true\n");
    assert_eq!(building.build(&["-q"]).status, Some(127));
    building.says("FROM base:1\nUSER nobody9\nRUN true\n");
    assert!(building.build(&["-q"]).status.is_some_and(|status| status != 0));
}

#[test]
fn whoever_is_killed_nothing_of_a_build_goes_on() {
    let Some(building) = Building::new() else { return };
    building.says("FROM base:1\nRUN echo done > /done\nRUN echo ready; exec sleep 1000\n");
    let mut running = Running::begin(building.command(&["-t", "made", "context"]).stderr(Stdio::null()));
    while running.line() != "ready" {}
    let launchers = running.children();
    let mut all = launchers.clone();
    for launcher in &launchers {
        let list = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap();
        all.extend(list.split_whitespace().map(|pid| nix::unistd::Pid::from_raw(pid.parse().unwrap())));
    }
    assert!(all.len() >= 3, "the launcher, the container and its daemon: {all:?}");
    running.signal(nix::sys::signal::Signal::SIGKILL);
    drop(running);
    wait_until_gone(&all);
    // The next one finds what was done, and removes what was not.
    building.says("FROM base:1\nRUN echo done > /done\nRUN echo two > /two\n");
    let outcome = building.build(&["-t", "made"]);
    assert!(outcome.status == Some(0) && outcome.stdout.contains("Using cache"), "{outcome:?}");
    assert_eq!(building.look("cat /done /two"), "done\ntwo\n");
    assert_eq!(stored("tmp"), [] as [PathBuf; 0]);
}

#[test]
fn the_same_context_gives_the_same_image_with_a_date() {
    let Some(building) = Building::new() else { return };
    building.prepare("mkdir d; echo a > d/a; echo b > b");
    building.says("FROM base:1\nWORKDIR /w\nCOPY . .\nRUN echo c > c; rm b\nLABEL x=y\n");
    let build = || {
        let mut command = building.command(&["-q", "--no-cache", "context"]);
        let outcome = finish(command.env("SOURCE_DATE_EPOCH", "1700000000"));
        assert_eq!(outcome.status, Some(0), "{outcome:?}");
        outcome.stdout
    };
    let first = build();
    building.prepare("touch d d/a b; sleep 1.1");
    assert_eq!(build(), first);
    assert!(building.images.print(&["inspect", first.trim()]).contains("2023-11-14T22:13:20Z"));
    let wrong = finish(building.command(&["-q", "--no-cache", "context"]).env("SOURCE_DATE_EPOCH", "yesterday"));
    let why = "rlaunch: SOURCE_DATE_EPOCH=yesterday: it is no number of seconds\n";
    assert_eq!((wrong.status, wrong.stderr.as_str()), (Some(125), why), "{wrong:?}");
}

fn as_user(path: Option<&str>, tree: &Tree, words: &[&str]) -> Outcome {
    let mut command = Command::new(RLAUNCH);
    command.args(words).current_dir(tree.beside("")).env("XDG_DATA_HOME", tree.beside("data"));
    if let Some(path) = path {
        command.env("PATH", path);
    }
    finish(&mut command)
}

#[test]
fn an_ordinary_user_builds() {
    if !again(Way::Fusermount, "an_ordinary_user_builds") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    let context = tree.beside("context");
    sh(&format!(
        "mkdir -p {0}/d; cd {0}; echo a > a; echo b > d/b; chmod 750 d; echo 'web:x:33:34::/:/bin/sh' >> {1}",
        context.display(),
        tree.path("etc/passwd").display()
    ));
    let text = "FROM tree AS one\nWORKDIR /w\nCOPY . .\nRUN id -u > me; echo c > c; rm a\n\
        FROM tree\nCOPY --from=one /w /w\nCOPY a /x\n";
    let look = "cat /w/me /w/c /w/d/b /x; ls /w; stat -c %u:%g /w; stat -c %A /w/d";
    for path in [None, Some("/usr/lib")] {
        drop(fs::remove_dir_all(tree.beside("data")));
        fs::write(context.join("Dockerfile"), text).unwrap();
        assert_eq!(as_user(path, &tree, &["image", "import", "tree"]).status, Some(0));
        let built = as_user(path, &tree, &["image", "build", "-q", "-t", "made", "context"]);
        assert_eq!(built.status, Some(0), "{built:?}");
        let seen = as_user(path, &tree, &["run", "--image", "made", "sh", "-c", look]);
        let expected = "0\nc\nb\na\nDockerfile\nc\nd\nme\n0:0\ndrwxr-x---\n";
        assert_eq!((seen.status, seen.stdout.as_str()), (Some(0), expected), "{path:?}");
        let cached = as_user(path, &tree, &["image", "build", "-t", "made", "context"]);
        assert_eq!(cached.stdout.matches("Using cache").count(), 5, "{cached:?}");
        fs::write(context.join("Dockerfile"), "FROM tree\nCOPY --chown=web:7 a /owned\n").unwrap();
        let owned = as_user(path, &tree, &["image", "build", "-t", "owned", "context"]);
        if path.is_none() {
            let seen = as_user(path, &tree, &["run", "--image", "owned", "stat", "-c", "%u:%g", "/owned"]);
            assert_eq!((seen.status, seen.stdout.as_str()), (Some(0), "33:7\n"), "{owned:?}");
        } else {
            // Who is alone can give files to nobody.
            assert_eq!(owned.status, Some(125), "{owned:?}");
            assert!(owned.stderr.contains("Dockerfile:2: ") && owned.stderr.contains("nobody but root"), "{owned:?}");
            // What was made so has other owners than it should; whoever has further ids by now makes it anew.
            fs::write(context.join("Dockerfile"), text).unwrap();
            let anew = as_user(None, &tree, &["image", "build", "-t", "made", "context"]);
            assert_eq!((anew.status, anew.stdout.matches("Using cache").count()), (Some(0), 0), "{anew:?}");
        }
    }
}
