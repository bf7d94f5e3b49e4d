"""A client of `ddcp serve` (docs/control.md): says hello, asks for the status, pulls, and prints an event.

    python3 client.py .ddcp/notes.db/control.sock
    python3 client.py 127.0.0.1:4711 .ddcp/notes.db/control.token
"""

import json
import socket
import sys
from pathlib import Path


class Daemon:
    def __init__(self, where, token=None):
        if token is None:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(where)
        else:
            host, port = where.rsplit(":", 1)
            self.socket = socket.create_connection((host.strip("[]"), int(port)))
        self.lines = self.socket.makefile("r", encoding="utf-8")
        self.events = []
        self.last_id = 0
        hello = {"control": 1}
        if token is not None:
            hello["token"] = token
        self.hello = self.ask("hello", **hello)

    def ask(self, method, **params):
        """The result of a request. Events that come before it are kept."""
        self.last_id += 1
        request = {"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self.receive()
            if "method" in message:
                self.keep(message)
            elif "error" in message:
                failure = message["error"]["data"]
                sys.exit(f"error: {failure['message']}\nhint: {failure.get('hint', 'none')}")
            else:
                return message["result"]

    def next_event(self):
        while not self.events:
            self.keep(self.receive())
        return self.events.pop(0)

    def keep(self, notification):
        if notification["method"] == "event":
            self.events.append(notification["params"])

    def receive(self):
        line = self.lines.readline()
        if not line:
            sys.exit("error: the daemon has hung up")
        return json.loads(line)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    token = Path(sys.argv[2]).read_text().strip() if len(sys.argv) == 3 else None
    daemon = Daemon(sys.argv[1], token)
    print("ddcp", daemon.hello["version"])
    status = daemon.ask("status")
    print("tables:", *status["tables"])
    daemon.ask("subscribe")
    for remote in daemon.ask("pull")["fetched"]:
        outcome = f"{remote['done']['changes']} changes" if "done" in remote else remote["failed"]["message"]
        print(f"fetched from {remote['remote']}: {outcome}")
    # Waits for one if the pull brought nothing.
    event = daemon.next_event()
    print("event:", event.pop("event"), json.dumps(event))


if __name__ == "__main__":
    main()
