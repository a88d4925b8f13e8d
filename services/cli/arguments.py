"""What people write on a command line, as values: labels, times, lengths, and the words for enums."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer

from imprimatur.v1.creative_pb2 import DECISION_APPROVED, DECISION_REJECTED, Decision
from imprimatur.v1.job_pb2 import PRIORITY_HIGH, PRIORITY_LOW, PRIORITY_NORMAL, Priority
from imprimatur.v1.job_service_pb2 import WHEN_BUSY_REFUSE, WHEN_BUSY_SUPERSEDE, WhenBusy

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LENGTH = re.compile(r"(\d{1,9})([smhd])")


class PriorityWord(StrEnum):
    """Interactive work before bulk work."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def value_in_contract(self) -> Priority.ValueType:
        """The contract's value."""
        return {"high": PRIORITY_HIGH, "normal": PRIORITY_NORMAL, "low": PRIORITY_LOW}[self]


class WhenBusyWord(StrEnum):
    """What becomes of a job whose concurrency key is taken."""

    REFUSE = "refuse"
    SUPERSEDE = "supersede"

    @property
    def value_in_contract(self) -> WhenBusy.ValueType:
        """The contract's value."""
        return {"refuse": WHEN_BUSY_REFUSE, "supersede": WHEN_BUSY_SUPERSEDE}[self]


class Verdict(StrEnum):
    """What a person decides."""

    APPROVE = "approve"
    REJECT = "reject"

    @property
    def decision(self) -> Decision.ValueType:
        """The contract's value."""
        return DECISION_APPROVED if self is Verdict.APPROVE else DECISION_REJECTED


def labels_of(pairs: Iterable[str]) -> dict[str, str]:
    """`key=value` pairs; raises BadParameter."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"'{pair}' is not KEY=VALUE", param_hint="--label")
        found[key] = value
    return found


def length(text: str) -> timedelta:
    """ "90s", "15m", "24h" or "7d"; raises BadParameter."""
    match = _LENGTH.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"'{text}' is no length of time such as 90s, 15m, 24h or 7d")
    try:
        return timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    except OverflowError:
        raise typer.BadParameter(f"'{text}' is too long") from None


def moment(text: str) -> datetime:
    """A length of time ago, or an ISO 8601 time (local where it has no zone); raises BadParameter."""
    if _LENGTH.fullmatch(text.strip()):
        try:
            return datetime.now(UTC) - length(text)
        except OverflowError:
            raise typer.BadParameter(f"'{text}' ago is before all calendars") from None
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"'{text}' is neither a time such as 2026-05-31T09:00 nor an age such as 24h"
        ) from None


JobIdArgument = Annotated[str, typer.Argument(metavar="JOB_ID", help="A job's id.")]
LabelOption = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="May be given often.")]
SinceOption = Annotated[
    datetime | None, typer.Option("--since", parser=moment, metavar="TIME", help="An age (24h) or an ISO 8601 time.")
]
UntilOption = Annotated[
    datetime | None, typer.Option("--until", parser=moment, metavar="TIME", help="Before this. Default: now.")
]
