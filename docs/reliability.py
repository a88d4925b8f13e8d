"""Writes the table of docs/reliability.md from docs/reliability.json, which `make soak` leaves; with --check, only
compares.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
FIGURES = FOLDER / "reliability.json"
PAGE = FOLDER / "reliability.md"
_BEGIN = "<!-- the table: written by `make docs` from reliability.json -->\n"
_END = "<!-- end of the table -->\n"
#: Columns that count defects, by their name in the JSON, and as the table heads them.
DEFECTS = {
    "lost": "lost",
    "applied_twice": "applied twice",
    "wrong_ends": "wrong or missing end",
    "regressions": "stream went back",
    "ends_missed": "end missed by watcher",
    "webhooks_missing": "webhook missing",
    "innocents_charged": "innocent charged",
    "surprises": "anything else",
}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, from the objects of the JSON."""
    heads = ["fault", "struck", "jobs accepted", *DEFECTS.values(), "recovery p50 / p99 / max, s", "of"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        recovery = " / ".join(f"{row[f'recovery_{name}_s']:.1f}" for name in ("p50", "p99", "max"))
        cells = [row["fault"], row["injected"], row["accepted"], *(row[name] for name in DEFECTS)]
        lines.append(f"| {' | '.join(map(str, [*cells, recovery, row['recovery']]))} |")
    return "\n".join(lines) + "\n"


def page(text: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with a new table in it."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{table(rows)}{_END}{after}"


def main() -> int:
    """Write the page, or say that it is not current."""
    text = PAGE.read_text(encoding="utf-8")
    wanted = page(text, json.loads(FIGURES.read_text(encoding="utf-8"))["faults"])
    if "--check" not in sys.argv:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if text != wanted:
        sys.stderr.write("not current: reliability.md; run `make docs`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
