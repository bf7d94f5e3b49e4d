"""Two databases, written independently, made equal."""

import os
import sys
import tempfile
from contextlib import closing
from pathlib import Path

try:  # a build of the module that may load extensions, for a Python whose own may not
    import pysqlite3 as sqlite3
except ImportError:
    import sqlite3

EXTENSION = os.environ.get("CRSQLITE", str(Path(__file__).parents[2] / "target/release/libcrsqlite"))


def open_database(path):
    # None: no implicit transactions, BEGIN and COMMIT stand where they are meant.
    db = sqlite3.connect(path, isolation_level=None)
    if not hasattr(db, "enable_load_extension"):
        sys.exit("this Python's sqlite3 may not load extensions: pip install pysqlite3-binary, or use another Python")
    db.enable_load_extension(True)
    db.load_extension(EXTENSION)
    db.enable_load_extension(False)
    db.execute(
        "CREATE TABLE IF NOT EXISTS todo (id TEXT PRIMARY KEY NOT NULL, title TEXT, done INTEGER NOT NULL DEFAULT 0)"
    )
    db.execute("SELECT crsql_as_crr('todo')")
    return db


def site_id(db):
    return db.execute("SELECT crsql_site_id()").fetchone()[0]


def pull(db, peer):
    """Merges into `db` what `peer` has written since the last time."""
    (since,) = db.execute(
        "SELECT max(version) FROM crsql_tracked_peers WHERE site_id = ? AND tag = 0 AND event = 0", (site_id(peer),)
    ).fetchone()
    changes = peer.execute(
        "SELECT * FROM crsql_changes WHERE db_version > ? AND site_id IS NOT ? ORDER BY db_version, seq",
        (since or 0, site_id(db)),
    ).fetchall()
    if not changes:
        return

    # One transaction: either all of it is merged and remembered, or none.
    db.execute("BEGIN")
    try:
        db.executemany("INSERT INTO crsql_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", changes)
        newest = changes[-1][5]  # db_version
        db.execute(
            """INSERT INTO crsql_tracked_peers (site_id, version, tag, event) VALUES (?, ?, 0, 0)
               ON CONFLICT DO UPDATE SET version = excluded.version""",
            (site_id(peer), newest),
        )
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def rows(db):
    return db.execute("SELECT id, title, done FROM todo ORDER BY id").fetchall()


def main():
    with tempfile.TemporaryDirectory() as folder:
        with closing(open_database(f"{folder}/alice.db")) as alice, closing(open_database(f"{folder}/bob.db")) as bob:
            alice.execute("INSERT INTO todo (id, title) VALUES ('milk', 'buy milk'), ('bread', 'buy bread')")
            pull(bob, alice)

            # Both go on writing. Different columns of one row do not conflict; of one column all peers choose the
            # same value.
            alice.execute("UPDATE todo SET title = 'buy oat milk' WHERE id = 'milk'")
            alice.execute("DELETE FROM todo WHERE id = 'bread'")
            bob.execute("UPDATE todo SET done = 1 WHERE id = 'milk'")
            bob.execute("INSERT INTO todo (id, title) VALUES ('tea', 'buy tea')")
            pull(bob, alice)
            pull(alice, bob)

            for row in rows(alice):
                print(*row, sep="|")
            equal = rows(alice) == rows(bob)
            for db in (alice, bob):
                db.execute("SELECT crsql_finalize()")

    if not equal:
        sys.exit("alice and bob differ")
    print("alice and bob are equal")


if __name__ == "__main__":
    main()
