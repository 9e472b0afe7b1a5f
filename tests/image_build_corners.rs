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
