"""What `make docs` writes: whole files, and tables that stand between two comments of a page."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def write_or_compare(wanted: Mapping[Path, str | None]) -> int:
    """Bring each file to its text (None: there shall be no such file); with --check among the program's words, only say
    which are not current. Returns the program's exit status."""
    stale = [path for path, text in wanted.items() if (path.read_text("utf-8") if path.exists() else None) != text]
    if "--check" in sys.argv:
        for path in stale:
            sys.stderr.write(f"not current: {os.path.relpath(path, REPOSITORY)}; run `make docs`\n")
        return int(bool(stale))
    for path in stale:
        text = wanted[path]
        if text is None:
            path.unlink()
        else:
            path.write_text(text, encoding="utf-8")
    return 0


def placed(text: str, page: str, *, begin: str, end: str) -> str:
    """The page with this text between its two comments.

    Raises:
        ValueError: the page has lost one of them.
    """
    before, begun, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise ValueError(f"the page has lost {begin.strip()} or {end.strip()}")
    return f"{before}{begin}{text}{end}{after}"
