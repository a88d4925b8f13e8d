"""What a soak leaves: its rows as JSON, from which docs/reliability.md has its table."""

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from docs.reliability import table
from tests.faults.campaign import Row


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values; NaN of none."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def as_json(rows: Sequence[Row]) -> str:
    """One object per row: the counts, and the percentiles of the recovery."""
    return json.dumps({"faults": [_flat(row) for row in rows]}, indent=2) + "\n"


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
