//! The library in the programs that load it: the `sqlite3` shell and Python.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;

/// The built library, beside the test's own program.
fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = program.ancestors().nth(2).unwrap();
    let name = format!("{}crsqlite{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    [folder.join(&name), folder.join("deps").join(&name)]
        .into_iter()
        .find(|path| path.exists())
        .expect("build the library first: cargo build --release -p crsqlite-loadable")
}

/// The output of a program, or none if it is not installed.
fn run(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

#[test]
fn in_the_shell() {
    let load = format!(".load {}", library().display());
    let sql = "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b); SELECT crsql_as_crr('foo');
        INSERT INTO foo VALUES (1, 'x'); UPDATE foo SET b = 'y';
        SELECT [table], hex(pk), cid, val, col_version, db_version, cl, seq FROM crsql_changes;
        SELECT crsql_finalize();";
    let output = run("sqlite3", &[":memory:", &load, &load, sql]).expect("the sqlite3 shell must be installed");
    assert_eq!(output, "OK\nfoo|010901|b|y|2|2|1|0\nfinalized\n");
}

#[test]
fn in_python() {
    let script = r"
import sys
try:
    import pysqlite3 as sqlite3
except ImportError:
    import sqlite3
if not hasattr(sqlite3.Connection, 'enable_load_extension'):
    print('unable'); sys.exit()
def open_(path=':memory:'):
    c = sqlite3.connect(path, isolation_level=None)
    c.enable_load_extension(True)
    c.load_extension(sys.argv[1])
    c.execute('CREATE TABLE foo (a TEXT PRIMARY KEY NOT NULL, b)')
    c.execute('SELECT crsql_as_crr(?)', ('foo',))
    return c
a, b = open_(), open_()
a.execute('INSERT INTO foo VALUES (?, ?)', ('k\0', b'\0\1'))
a.execute('INSERT INTO foo VALUES (?, ?)', ('', None))
for row in a.execute('SELECT * FROM crsql_changes WHERE db_version > 0 AND site_id IS NOT ?', (b.execute('SELECT crsql_site_id()').fetchone()[0],)):
    b.execute('INSERT INTO crsql_changes VALUES (?,?,?,?,?,?,?,?,?)', row)
assert a.execute('SELECT * FROM foo').fetchall() == b.execute('SELECT * FROM foo').fetchall() == [('k\0', b'\0\1'), ('', None)]
try:
    b.execute('INSERT INTO crsql_changes VALUES (?,?,?,?,?,?,?,?,?)', ('nope', b'', '', 1, 1, 1, b'', 1, 1))
except sqlite3.OperationalError as e:
    assert 'could not find the schema information for table nope' in str(e), e
else:
    raise AssertionError('merged into a table that does not exist')
try:
    b.execute('SELECT crsql_commit_alter(?)', ('foo',))
except sqlite3.OperationalError as e:
    assert str(e) == 'failed compacting tables post alteration', e
else:
    raise AssertionError('altered without having begun')
a.close(); b.close()
print('done')
";
    let library = library();
    let path = library.to_str().unwrap();
    for python in ["python3", "/usr/bin/python3"] {
        let Some(output) = run(python, &["-c", script, path]) else { continue };
        if output.trim() == "unable" {
            eprintln!("skipped: {python} is built without extensions");
            continue;
        }
        assert_eq!(output, "done\n");
        return;
    }
}
