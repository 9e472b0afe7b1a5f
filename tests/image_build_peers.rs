//! What we build is what buildah builds: the same files and the same words for how they are run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use harness::mount::finish;

#[path = "support/building.rs"]
mod building;
#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use building::Building;
use images::Images;
use launch::{RLAUNCH, printed};

/// Set-id bits of a context are not among this: buildah takes them away, docker does not. Nor is a shell form of CMD behind
/// SHELL, which buildah gives to /bin/sh all the same.
const CONTEXT: &str = "mkdir -p dir/sub pack; echo a > a.txt; echo b > b.txt; echo c > dir/c; echo d > dir/sub/d; chmod 750 dir/sub; chmod 711 dir/c
    ln dir/c dir/hard; ln -s ../../../../etc/shadow dir/out; ln -s /etc/shadow abs; ln -s dir/c inlink; echo s > secret
    echo p > pack/p; ln pack/p pack/q; ln -s p pack/l; chown 5:6 pack/p; tar czf pack.tgz pack; rm -r pack; gzip -k < a.txt > plain.gz
    printf 'secret\\n**/*.o\\n!keep.o\\n' > .dockerignore; touch x.o keep.o dir/y.o";

const DOCKERFILE: &str = r#"# escape=\
ARG BASE=base:1
FROM $BASE AS builder
ARG WHO=nobody
ENV GREETING="hello ${WHO:-x}" OTHER=a\ b
ENV OLD_FORM some "words" $OTHER
WORKDIR /src
COPY *.txt ./
RUN echo "$GREETING from $WHO; $OLD_FORM" > out \
    # a comment
    && ln out out2 && chown web:web out
FROM base:1
USER web
WORKDIR /home/w
USER root
COPY --from=builder /src/out /data/
COPY --from=builder /src /copy
COPY --chown=web:ops --chmod=640 a.txt /owned/x
COPY dir /dir
COPY dir/sub /sub
COPY dir/sub/d inlink /flat/
COPY d* /wild/
ADD pack.tgz plain.gz /un/
COPY ["a.txt", "/with space/"]
COPY . /all
WORKDIR relative/../rel
RUN rm -r /all/dir && mkdir /all/dir && echo new > /all/dir/new && mv /flat /moved && chmod 700 /sub
VOLUME /data "/v2"
LABEL a="b c" d=e multi="one \
two"
EXPOSE 80 53/udp
ARG LATE=lately
ENV FROM_ARG=${LATE} EMPTY=${NONE}
STOPSIGNAL SIGINT
MAINTAINER Somebody <some@body>
HEALTHCHECK --interval=1m --retries=2 CMD true
CMD hello $OLD_FORM
SHELL ["/bin/ash", "-ec"]
ENTRYPOINT ["echo"]
USER web:ops
"#;

#[track_caller]
fn script(images: &Images, script: &str) -> String {
    let outcome = finish(Command::new("sh").args(["-ec", script]).current_dir(images.tree.beside("")));
    assert_eq!(outcome.status, Some(0), "{script}: {outcome:?}");
    outcome.stdout
}

/// Every entry of an image: type, mode, owner, links, target and content. Times are those of the build.
#[track_caller]
fn files(image: &str) -> Vec<String> {
    let look = "cd /; find . -xdev \\( -path ./proc -o -path ./sys -o -path ./dev -o -path ./etc -o -path ./run -o -path ./bin \\) -prune -o -print0 | sort -z | xargs -0 stat -c '%N %A %u:%g'
        find all copy data dir flat home moved owned src sub un wild 'with space' -type f -print0 2>/dev/null | sort -z | xargs -0 md5sum; stat -c '%n %h' copy/out dir/c un/pack/p";
    let mut command = Command::new(RLAUNCH);
    let seen =
        printed(finish(command.args(["run", "--image", image, "--entrypoint", "sh", "-u", "0", "--", "-c", look])));
    seen.lines().map(str::to_owned).collect()
}

/// What an image says of how it is run, without what only buildah says.
fn said(images: &Images, image: &str) -> serde_json::Value {
    let details: serde_json::Value = serde_json::from_str(&images.print(&["inspect", image])).unwrap();
    let mut config = details[0]["Config"].clone();
    if let Some(labels) = config["Labels"].as_object_mut() {
        labels.remove("io.buildah.version");
    }
    config["Author"] = details[0]["Author"].clone();
    let object = config.as_object_mut().unwrap();
    // Words that docker's form has, and OCI's does not; empty is as good as not there.
    object.retain(|_, value| {
        let is_empty = value.is_null() || value == "" || value == false || value.as_array().is_some_and(Vec::is_empty);
        !is_empty && !value.as_object().is_some_and(serde_json::Map::is_empty)
    });
    object.remove("Hostname");
    object.remove("Image");
    config
}

#[test]
fn buildah_builds_the_same() {
    if tools::find("buildah").is_none() {
        return;
    }
    let Some(building) = Building::new() else { return };
    let images = &building.images;
    building.prepare(CONTEXT);
    building.says(DOCKERFILE);
    let arguments = ["-t", "ours", "--build-arg", "WHO=me"];
    let outcome = building.build(&arguments);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    images.print(&["export", "base:1", "--format", "docker-archive", "-o", "base.tar"]);
    let buildah = "buildah --root=$PWD/storage --runroot=$PWD/runroot --storage-driver=vfs";
    script(
        images,
        &format!(
            "{buildah} pull -q docker-archive:base.tar >&2
            {buildah} bud -q --isolation chroot --network host --format docker --build-arg WHO=me -t theirs:1 context >&2
            {buildah} push -q theirs:1 docker-archive:theirs.tar:theirs:1 >&2"
        ),
    );
    images.print(&["import", "theirs.tar", "--name", "theirs"]);
    assert_eq!(files("ours"), files("theirs"));
    assert_eq!(said(images, "ours"), said(images, "theirs"));
    // And buildah runs what we have built, over our own layers.
    images.print(&["export", "ours", "-o", "ours.tar"]);
    let listed = script(images, &format!("{buildah} pull -q oci-archive:ours.tar"));
    assert!(Path::new(&images.tree.beside("storage")).exists() && !listed.is_empty());
}
