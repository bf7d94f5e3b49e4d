//! The engine as a loadable library: where it is, and in place of the one in the program.

use std::{fs, process::Command};

use crate::support::{DDCP, Repo, World, assert_converged};

#[test]
fn where_there_is_no_library_it_says_how_to_get_one() {
    let world = World::new();
    let program = world.path("ddcp");
    fs::copy(DDCP, &program).unwrap();
    let stderr = || {
        let output = Command::new(&program).arg("extension").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let text = stderr();
    assert!(text.starts_with("error: there is no libcrsqlite.so of this version beside the program in /"), "{text}");
    assert!(
        text.contains("hint: `cargo build --release -p crsqlite-loadable` in the sources of this version"),
        "{text}"
    );

    fs::write(world.path("libcrsqlite.so"), "no library").unwrap();
    let text = stderr();
    assert!(text.contains("libcrsqlite.so cannot be loaded into :memory:"), "{text}");
}

/// Run by the gate, which builds the library first.
#[test]
#[ignore = "needs `cargo build --release -p crsqlite-loadable`"]
fn the_library_takes_the_place_of_the_engine_in_the_program() {
    let world = World::new();
    let library = world.run(["extension"]).assert_status(0).stdout;
    let library = library.trim();
    assert!(library.ends_with("/libcrsqlite.so"), "{library}");

    let loaded = |repo: &Repo, arguments: &[&str]| {
        let run = repo.run([&["--extension", library], arguments].concat()).assert_status(0);
        run.stdout
    };
    let (a, b) = (world.repo("a"), world.notes("b"));
    loaded(&a, &["init"]);
    loaded(&a, &["shell", "CREATE TABLE note (id TEXT NOT NULL PRIMARY KEY, body TEXT, stars INTEGER)"]);
    loaded(&a, &["shell", "SELECT crsql_as_crr('note')"]);
    loaded(&a, &["shell", "INSERT INTO note VALUES ('a', 'from a', 1), ('both', 'of a', 1)"]);
    b.sql("INSERT INTO note VALUES ('b', 'from b', 2), ('both', 'of b', 2)");
    a.follows(&[&b]);
    b.follows(&[&a]);
    let pulled = loaded(&a, &["pull"]);
    assert!(pulled.ends_with("b: merged 4 changes (note 4)\n"), "{pulled}");
    b.pull();
    loaded(&a, &["pull"]);
    assert_converged(&[&a, &b]);
}
