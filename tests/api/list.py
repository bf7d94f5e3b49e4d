"""Lists the public interface of the crate `ddcp`, from what rustdoc has written, and compares it with docs/api.txt.

    cargo doc --release --no-deps -p ddcp
    python3 tests/api/list.py            # fails if they differ
    python3 tests/api/list.py --write    # takes the interface as it is

The listing has each item that the root of the crate shows: its declaration, the methods of its own, and the traits it has.
"""

import difflib
import html
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "doc" / "ddcp"
LISTING = ROOT / "docs" / "api.txt"


def text(markup):
    """Markup as plain text, each line without what is at its end."""
    markup = re.sub(r"<details.*?</summary>|</details>", "", markup, flags=re.S)
    markup = re.sub(r"<div[^>]*>", "\n", markup).replace("</div>", "\n")
    lines = html.unescape(re.sub(r"<[^>]+>", "", markup)).splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip())


def headers(part):
    """The declarations in a part of a page, each in one line."""
    found = re.findall(r'<h[34] class="code-header">(.*?)</h[34]>', part, flags=re.S)
    return [" ".join(text(header).split()) for header in found]


def between(page, start, end):
    match = re.search(rf'<h2 id="{start}"(.*?)(<h2 id="{end}"|$)', page, flags=re.S)
    return match.group(1) if match else ""


def item(page):
    """An item as the lines that are listed."""
    declaration = re.search(r'<pre class="rust item-decl"><code>(.*?)</code></pre>', page, flags=re.S)
    yield text(declaration.group(1))
    own = between(page, "implementations", "trait-implementations")
    for header in headers(own):
        if not header.startswith("impl"):
            yield "    " + header
    traits = headers(between(page, "trait-implementations", "synthetic-implementations"))
    # The others of this kind are not stable, and differ between versions of rustdoc.
    automatic = headers(between(page, "synthetic-implementations", "blanket-implementations"))
    automatic = [header for header in automatic if re.match(r"impl.* !?(Send|Sync|Unpin) for ", header)]
    for header in sorted(h for h in traits + automatic if h.startswith("impl")):
        yield "    " + header


def listing():
    everything = (PAGES / "all.html").read_text()
    names = re.findall(r'<li><a href="([^"/]+\.html)">', everything)
    if not names:
        sys.exit(f"error: {PAGES} shows no items: cargo doc --release --no-deps -p ddcp")
    pages = sorted(names, key=lambda name: name.split(".")[1])
    return "\n\n".join("\n".join(item((PAGES / name).read_text())) for name in pages) + "\n"


def main():
    now = listing()
    if "--write" in sys.argv:
        LISTING.write_text(now)
        return
    before = LISTING.read_text()
    if now != before:
        sys.stdout.writelines(
            difflib.unified_diff(before.splitlines(True), now.splitlines(True), "docs/api.txt", "what there is", n=1)
        )
        sys.exit("error: the public interface has changed: if that is meant, `just api`, and say so in CHANGELOG.md")
    print(f"docs/api.txt is what there is: {now.count('pub ')} declarations")


if __name__ == "__main__":
    main()
