//! `ddcp shell` from an argument and from a pipe.

use insta::assert_snapshot;

use crate::support::World;

#[test]
fn statements_from_the_argument() {
    let world = World::new();
    let a = world.notes("a");
    assert_snapshot!(a.run(["shell", "INSERT INTO note VALUES ('1', 'a|b', NULL), ('2', x'00ff', 2.0); SELECT * FROM note"]), @"
    status 0
    --- stdout
    1|a|b|
    2|x'00ff'|2
    ");
    assert_snapshot!(a.run(["shell", "--format", "json", "SELECT * FROM note"]), @r#"
    status 0
    --- stdout
    [{"id":"1","body":"a|b","stars":null},
    {"id":"2","body":{"blob":"00ff"},"stars":2}]
    "#);
    assert_snapshot!(a.run(["shell", ".tables"]), @"
    status 0
    --- stdout
    note
    ");
    assert_snapshot!(a.run(["shell", "SELECT cid, val, col_version, db_version, cl, seq FROM crsql_changes"]), @"
    status 0
    --- stdout
    body|a|b|1|1|1|0
    stars||1|1|1|1
    body|x'00ff'|1|1|1|2
    stars|2|1|1|1|3
    ");
}

#[test]
fn statements_from_a_pipe() {
    let world = World::new();
    let a = world.notes("a");
    let script =
        "INSERT INTO note\n  VALUES ('1', 'one', 1);\n-- a remark\nSELECT *\nFROM note;\n.quit\nSELECT 'never';\n";
    assert_snapshot!(a.run_with_input(["shell"], script.as_bytes()), @"
    status 0
    --- stdout
    1|one|1
    ");
    assert_eq!(a.changes().len(), 2, "what the shell writes replicates");
}

#[test]
fn errors_name_the_line_and_stop() {
    let world = World::new();
    let a = world.notes("a");
    assert_snapshot!(a.run_with_input(["shell"], b"SELECT 1;\n\nSELECT * FROM absent;\nSELECT 2;\n"), @"
    status 1
    --- stdout
    1

    --- stderr
    error: line 3: no such table: absent
    ");
    assert_snapshot!(a.run(["shell", "SELEC"]), @r#"
    status 1
    --- stderr
    error: near "SELEC": syntax error
    "#);
    assert_snapshot!(a.run(["shell", ".absent"]), @"
    status 2
    --- stderr
    error: unknown command .absent; .help lists the commands
    ");
    assert_snapshot!(a.run(["shell", "BEGIN; INSERT INTO note VALUES ('1', 'one', 1)"]), @"
    status 1
    --- stderr
    error: the input ended without COMMIT; the changes since BEGIN were rolled back
    ");
    assert_eq!(a.notes(), [""; 0], "an open transaction is rolled back");
}
