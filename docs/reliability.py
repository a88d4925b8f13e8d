"""Writes the table of docs/reliability.md, when it was measured and what has no row yet, from docs/reliability.json,
which `make soak` leaves; with --check, only compares.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.generated import placed, write_or_compare
from tests.faults.faults import FAULTS

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
    heads = [
        "fault",
        "struck",
        "jobs accepted",
        *DEFECTS.values(),
        "lost unstruck",
        "recovery p50 / p99 / max, s",
        "of",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        recovery = " / ".join(_seconds(row[f"recovery_{name}_s"]) for name in ("p50", "p99", "max"))
        cells = [row["fault"], row["struck"], row["accepted"], *(row[name] for name in DEFECTS), row["lost_unstruck"]]
        lines.append(f"| {' | '.join(map(str, [*cells, recovery, row['recovery']]))} |")
    return "\n".join(lines) + "\n"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def measured(rows: Sequence[Mapping[str, Any]]) -> str:
    """At which commits, and when, the rows were measured: a paragraph of Markdown."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row["commit"], row["measured_on"]), []).append(row["fault"])
    if not groups:
        return "No row is measured yet.\n"
    if len(groups) == 1:
        ((commit, day),) = groups
        return f"All rows were measured at commit `{commit}` on {day} (UTC).\n"
    most = max(groups, key=lambda one: len(groups[one]))
    lines = [
        f"- at commit `{commit}` on {day}: {'all others' if (commit, day) == most else '; '.join(faults)}"
        for (commit, day), faults in groups.items()
    ]
    return "\n".join(["The rows were measured (days are UTC)", "", *lines]) + "\n"


def missing(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which faults have no row: a paragraph of Markdown, or nothing."""
    known = {row["fault"] for row in rows}
    names = [f"{one.name}{' (strikes in `make test`)' if one.fast else ''}" for one in FAULTS if one.name not in known]
    return f"\nWithout a row yet: {'; '.join(names)}.\n" if names else ""


def page(text: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with a new table in it."""
    return placed(f"{table(rows)}\n{measured(rows)}{missing(rows)}", text, begin=_BEGIN, end=_END)


def main() -> int:
    """Write the page, or say that it is not current."""
    rows = json.loads(FIGURES.read_text(encoding="utf-8"))["faults"]
    return write_or_compare({PAGE: page(PAGE.read_text(encoding="utf-8"), rows)})


if __name__ == "__main__":
    sys.exit(main())
