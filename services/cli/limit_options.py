"""How limits and budgets are said on the command line: to a gateway (`limits`), and at the database (`tenants`)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import typer

from imprimatur.budgets import MICROS, MOST_DOLLARS, MOST_TOKENS
from imprimatur.tenancy import MOST_A_SECOND, MOST_AT_ONCE, MOST_BYTES


@dataclass(frozen=True, kw_only=True)
class LimitWord:
    """A limit as it is kept: None is the default, 0 no limit."""

    number: float | None


def _word(text: str, most: int, *, whole: bool) -> LimitWord:
    """A number above 0, "none" or "default"; raises BadParameter."""
    if text in ("none", "default"):
        return LimitWord(number=0 if text == "none" else None)
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = 0
    if not 0 < number <= most:
        what = "a whole number" if whole else "a number"
        raise typer.BadParameter(f"'{text}' is not {what} from 1 to {most:,}, 'none' or 'default'")
    return LimitWord(number=number)


def _whole(most: int) -> Callable[[str], LimitWord]:
    return lambda text: _word(text, most, whole=True)


def _jobs_a_second(text: str) -> LimitWord:
    return _word(text, MOST_A_SECOND, whole=False)


def _micros(text: str) -> LimitWord:
    """Millionths of a dollar, and at least the smallest sum there is, for 0 would be no limit."""
    dollars = _word(text, MOST_DOLLARS, whole=False).number
    return LimitWord(number=None if dollars is None else math.ceil(round(dollars * MICROS, 3)))


def in_dollars(micros: int | None) -> float | None:
    """What is kept as millionths; None stays."""
    return None if micros is None else micros / MICROS


def limit_shown(number: float | None) -> str:
    """As it is written."""
    return "default" if number is None else f"{number:.10g}" if number else "none"


_HELP = "a number, 'none' or 'default'."
_Word: TypeAlias = LimitWord | None

SubmitsPerSecond = Annotated[
    _Word, typer.Option(parser=_jobs_a_second, metavar="LIMIT", help=f"Jobs a second, at each gateway: {_HELP}")
]
OpenJobs = Annotated[
    _Word,
    typer.Option(parser=_whole(MOST_AT_ONCE), metavar="LIMIT", help=f"Jobs queued or running, everywhere: {_HELP}"),
]
RunningJobs = Annotated[
    _Word,
    typer.Option(parser=_whole(MOST_AT_ONCE), metavar="LIMIT", help=f"Jobs under way at once, everywhere: {_HELP}"),
]
Streams = Annotated[
    _Word, typer.Option(parser=_whole(MOST_AT_ONCE), metavar="LIMIT", help=f"Watches open at each gateway: {_HELP}")
]
AssetBytes = Annotated[
    _Word, typer.Option(parser=_whole(MOST_BYTES), metavar="LIMIT", help=f"Bytes of uploaded images kept: {_HELP}")
]
DailyTokens = Annotated[
    _Word, typer.Option(parser=_whole(MOST_TOKENS), metavar="LIMIT", help=f"Tokens in and out, a day: {_HELP}")
]
DailyDollars = Annotated[_Word, typer.Option(parser=_micros, metavar="LIMIT", help=f"US dollars a day: {_HELP}")]
