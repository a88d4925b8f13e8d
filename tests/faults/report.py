"""What a soak leaves: its rows as JSON, from which docs/reliability.md has its table."""

import functools
import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from docs.reliability import FIGURES, PAGE, table
from tests.faults.faults import FAULTS
from tests.faults.rows import Row
from tests.faults.world import REPOSITORY

#: A row of fewer strikes never takes the place of one of so many.
FULL = 20


def begin(fault: str, path: Path, *, injections: int) -> None:
    """Drop the row of this fault's earlier full campaign, so that a new one which fails leaves none."""
    commit_at_the_start()
    if injections >= FULL:
        _write([row for row in _read(path) if row["fault"] != fault], path)


def keep(row: Row, path: Path) -> None:
    """Put this row in the place of an earlier one of the same fault, unless that one counts for more."""
    known = {earlier["fault"]: earlier for earlier in _read(path)}
    if row.fault in known and known[row.fault]["struck"] >= FULL > row.struck:
        return
    known[row.fault] = {
        **_flat(row),
        "measured_on": datetime.now(UTC).date().isoformat(),
        "commit": commit_at_the_start(),
    }
    _write([known[fault.name] for fault in FAULTS if fault.name in known], path)


def printed(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    return table([_flat(row) for row in rows])


@functools.cache
def commit_at_the_start() -> str:
    """The commit that this run measures; asked once, before it writes anything itself."""
    return commit_of(REPOSITORY)


def commit_of(folder: Path) -> str:
    """The commit in `folder`, with "-dirty" when tracked files differ, the report's own excepted; or "unknown"."""
    own = [f":(exclude,top){path.relative_to(REPOSITORY)}" for path in (FIGURES, PAGE)]
    try:
        described = _git(folder, "describe", "--always")
        changed = _git(folder, "diff", "--name-only", "HEAD", "--", ":(top)", *own)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
    return f"{described}-dirty" if changed else described


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["faults"] if path.exists() else []
    return rows


def _write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    path.write_text(json.dumps({"faults": rows}, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _flat(row: Row) -> dict[str, Any]:
    counts = asdict(row)
    seconds = counts.pop("recovery_seconds")
    return {
        **counts,
        "recoveries": len(seconds),
        "recovery_p50_s": row.percentile(0.50),
        "recovery_p99_s": row.percentile(0.99),
        "recovery_max_s": row.percentile(1.0),
    }
