"""What a soak leaves: its rows as JSON, from which docs/reliability.md has its table."""

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from docs.reliability import table
from tests.faults.campaign import Row
from tests.faults.faults import FAULTS


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values; NaN of none."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def keep(rows: Sequence[Row], path: Path) -> None:
    """Put these rows in the place of earlier ones of the same faults: counts, and percentiles of the recovery."""
    earlier = json.loads(path.read_text(encoding="utf-8"))["faults"] if path.exists() else []
    known = {row["fault"]: row for row in [*earlier, *map(_flat, rows)]}
    kept = [known[fault.name] for fault in FAULTS if fault.name in known]
    path.write_text(json.dumps({"faults": kept}, indent=2) + "\n", encoding="utf-8")


def printed(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    return table([_flat(row) for row in rows])


def _flat(row: Row) -> dict[str, Any]:
    counts = {field.name: getattr(row, field.name) for field in fields(Row) if field.name != "recovery_seconds"}
    seconds = row.recovery_seconds
    return {
        **counts,
        "recoveries": len(seconds),
        "recovery_p50_s": percentile(seconds, 0.50),
        "recovery_p99_s": percentile(seconds, 0.99),
        "recovery_max_s": percentile(seconds, 1.0),
    }
