use std::{fs, thread};

use super::*;

fn open_error(path: &Path, options: &OpenOptions) -> DatabaseError {
    let error = Database::open(path, options).unwrap_err();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    error
}

#[test]
fn files_that_are_no_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    assert!(matches!(open_error(&path, &OpenOptions::default()), DatabaseError::Missing { .. }));
    assert!(!path.exists());
    for content in ["x".to_owned(), "This is a letter.\n".repeat(500)] {
        fs::write(&path, &content).unwrap();
        assert!(matches!(open_error(&path, &options()), DatabaseError::NotADatabase { .. }));
        assert_eq!(fs::read_to_string(&path).unwrap(), content, "it is not touched");
    }
    assert!(matches!(open_error(folder.path(), &options()), DatabaseError::CannotOpen { .. }));
    let nowhere = folder.path().join("no/such/folder.db");
    let error = open_error(&nowhere, &options());
    assert!(error.to_string().contains("there is no folder"), "{error}");
}

#[test]
fn a_corrupt_file_is_reported() {
    let site = Site::new(NOTES);
    site.run(
        "INSERT INTO notes WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
              SELECT i, 'title ' || i, 'body' FROM n; PRAGMA wal_checkpoint(TRUNCATE)",
    );
    let Site { folder, database } = site;
    let path = folder.path().join("test.db");
    let reader = SiteId::from_bytes(&[1]).unwrap();
    drop(database);
    let whole = fs::read(&path).unwrap();
    // Page 1 holds the schema; the pages after it hold the rest.
    for (damaged, opens) in [(100..4096, false), (4096..whole.len(), true)] {
        let mut bytes = whole.clone();
        bytes[damaged].fill(0xa5);
        fs::write(&path, bytes).unwrap();
        let result = Database::open(&path, &OpenOptions::default())
            .and_then(|database| database.read_packs(Cursor::ZERO, &reader, &ReadLimits::default()));
        let error = result.unwrap_err();
        assert!(matches!(error, DatabaseError::Corrupt { .. }), "{opens}: {error:?}");
        assert!(error.to_string().contains("corrupt"), "{error}");
    }
}

#[test]
fn read_only_databases() {
    let site = Site::new(&format!("{NOTES} INSERT INTO notes VALUES (1, 'a', 1);"));
    let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
    let mut database = Database::open(&site.path(), &read_only).unwrap();
    let reader = SiteId::from_bytes(&[1]).unwrap();
    let batch = database.read_packs(Cursor::ZERO, &reader, &ReadLimits::default()).unwrap();
    assert_eq!(batch.packs[0].changes.len(), 2);
    let error = database.merge(&reader, &[], &[], Some(Cursor::ZERO), &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, DatabaseError::ReadOnly { .. }), "{error:?}");
}

/// The superuser may write any file, so this can tell only for others.
#[cfg(unix)]
#[test]
fn files_without_permission_to_write() {
    use std::os::unix::fs::PermissionsExt;
    let Site { folder, database } = Site::new(NOTES);
    let path = folder.path().join("test.db");
    drop(database);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    if fs::OpenOptions::new().write(true).open(&path).is_ok() {
        return;
    }
    assert!(matches!(open_error(&path, &OpenOptions::default()), DatabaseError::ReadOnly { .. }));
}

#[test]
fn old_layouts_are_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let layouts = [
        "CREATE TABLE __crsql_siteid (site_id)",
        "CREATE TABLE crsql_master (key TEXT PRIMARY KEY, value); INSERT INTO crsql_master VALUES ('crsqlite_version', 130000)",
        "CREATE TABLE crsql_master (key TEXT PRIMARY KEY, value); INSERT INTO crsql_master VALUES ('crsqlite_version', 150000);
         CREATE TABLE foo__crsql_clock (id, __crsql_col_name, __crsql_col_version)",
    ];
    for (index, layout) in layouts.iter().enumerate() {
        let path = folder.path().join(format!("{index}.db"));
        Connection::open(&path).unwrap().execute_batch(layout).unwrap();
        let before = fs::read(&path).unwrap();
        let error = open_error(&path, &options());
        assert!(matches!(error, DatabaseError::TooOld { .. }), "{error:?}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }
    let path = folder.path().join("0.16.db");
    let layout = "CREATE TABLE crsql_master (key TEXT PRIMARY KEY, value ANY); INSERT INTO crsql_master VALUES ('crsqlite_version', 160100)";
    Connection::open(&path).unwrap().execute_batch(layout).unwrap();
    Database::open(&path, &options()).unwrap();
}

#[test]
fn a_new_database_lets_readers_and_writers_alone() {
    let site = Site::blank();
    assert_eq!(site.rows("PRAGMA journal_mode"), [r#"[Text("wal")]"#]);
    let path = site.folder.path().join("old.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let database = Database::open(&path, &options()).unwrap();
    let mode: String = database.connection().pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!(mode, "delete", "an existing database keeps its mode");
    assert_eq!(database.path(), path);
}

#[test]
fn a_library_that_is_none_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let extension = folder.path().join("nothing.so");
    let options = OpenOptions { extension: Some(extension.clone()), ..options() };
    let error = open_error(&folder.path().join("a.db"), &options);
    assert!(matches!(error, DatabaseError::Extension { .. }), "{error:?}");
    assert!(error.to_string().contains(&extension.display().to_string()));
}

#[test]
fn a_new_database_is_opened_by_many_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new.db");
    let open = || Database::open(&path, &options()).unwrap().site_id().unwrap();
    let ids: Vec<SiteId> = thread::scope(|scope| {
        let openers: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        openers.into_iter().map(|opener| opener.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}
