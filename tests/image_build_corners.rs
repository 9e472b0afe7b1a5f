//! Dockerfiles and contexts that are seldom, and still mean something.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/building.rs"]
mod building;
#[path = "support/images.rs"]
mod images;
#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use building::Building;

/// GNU tar writes a file that is named twice as a link to itself.
#[test]
fn an_archive_may_hold_a_file_twice() {
    let Some(building) = Building::new() else { return };
    building.prepare("mkdir d; echo twice > d/f; tar cf a.tar d/f d/f; tar cf b.tar -C d f f");
    building.made("FROM base:1\nADD a.tar b.tar /\nADD a.tar /deep/\n");
    assert_eq!(building.look("cat /d/f /f /deep/d/f"), "twice\ntwice\ntwice\n");
}

/// As it is written where nobody is to exchange the image: the tag says nothing then.
#[test]
fn a_base_may_be_named_by_its_digest() {
    let Some(building) = Building::new() else { return };
    let details: serde_json::Value = serde_json::from_str(&building.images.print(&["inspect", "base:1"])).unwrap();
    let digest = details[0]["Digest"].as_str().unwrap();
    for name in ["base", "base:1", "base:other"] {
        building.made(&format!("FROM {name}@{digest}\nRUN echo {name} > /made\n"));
        assert_eq!(building.look("cat /made"), format!("{name}\n"));
        assert_eq!(building.images.run(&[&format!("{name}@{digest}"), "echo", "ran"]), "ran\n");
    }
    let other = digest.replace(|one: char| one.is_ascii_digit(), "0");
    let refused = building.refused(&format!("FROM base:1@{other}\n"));
    assert!(
        refused.contains(&format!("Dockerfile:1: there is no image base:1@{other} (rlaunch image pull ")),
        "{refused}"
    );
    let refused = building.refused(&format!("FROM another@{digest}\n"));
    assert!(refused.contains("there is no image another@"), "{refused}");
}

/// In a layer they would hide what lies below.
#[test]
fn names_that_no_layer_can_have_are_left_out_and_told() {
    let Some(building) = Building::new() else { return };
    building.prepare("mkdir -p d/e; touch d/f d/.wh.a d/e/.wh.b .wh.c; echo .wh.c > .dockerignore");
    building.says("FROM base:1\nCOPY . /all\n");
    let built = building.build(&["-t", "made"]);
    let reason = "a name that begins with .wh. cannot be in a layer, where it hides another one";
    let expected = format!("rlaunch: warning: d/.wh.a, and 1 more: left out, for {reason}\n");
    assert_eq!((built.status, built.stderr), (Some(0), expected));
    assert_eq!(building.look("cd /all; find . | sort"), ".\n./.dockerignore\n./Dockerfile\n./d\n./d/e\n./d/f\n");
    for (line, what) in [("COPY d/.wh.a /", "d/.wh.a"), ("COPY d/f /.wh.f", "/.wh.f"), ("COPY d /.wh.d/", "/.wh.d/")] {
        let refused = building.refused(&format!("FROM base:1\n{line}\n"));
        assert_eq!(refused, format!("rlaunch: context/Dockerfile:2: {line}: {what}: {reason}\n"));
    }
}
