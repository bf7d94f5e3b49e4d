"""Writes to a database for some seconds: applications.py DATABASE EXTENSION SECONDS. Prints what came of it, as JSON."""

import json
import sqlite3
import sys
import time

path, extension, seconds = sys.argv[1:]
database = sqlite3.connect(path, timeout=5, isolation_level=None)
database.enable_load_extension(True)
database.load_extension(extension)

commits, longest, refused = 0, 0.0, {}
deadline = time.monotonic() + int(seconds)
while time.monotonic() < deadline:
    began = time.monotonic()
    try:
        database.execute("BEGIN IMMEDIATE")
        for row in range(3):
            database.execute("INSERT INTO item VALUES (?, hex(randomblob(32)))", (f"python {commits} {row}",))
        database.execute("UPDATE item SET body = 'changed' WHERE id = ?", (f"python {commits - 1} 0",))
        database.execute("COMMIT")
        commits += 1
    except sqlite3.Error as error:
        refused[str(error)] = refused.get(str(error), 0) + 1
        if database.in_transaction:
            database.execute("ROLLBACK")
    longest = max(longest, time.monotonic() - began)
    time.sleep(0.02)
database.execute("SELECT crsql_finalize()")
print(json.dumps({"commits": commits, "longest_ms": longest * 1000, "refused": refused}))
