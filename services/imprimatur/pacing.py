"""When the next call may go to a provider, where calls must lie a stated time apart. Pure: no I/O, no clock.

Whoever comes and finds a turn within `hold_seconds` takes it, and waits for it where it is. For everybody else there
is a line: they are told when to come back, one interval behind the other, and hold nothing meanwhile. Who was there
before does not queue behind those who came later.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta


@dataclass(frozen=True, kw_only=True)
class Line:
    """What is known of one provider's calls, for one tenant and type of job."""

    free_at: datetime  #: the first call from now on may go then
    ends_at: datetime  #: the first moment for which nobody was told to come back


@dataclass(frozen=True, kw_only=True)
class Turn:
    """`taken`: the call is to go after `wait_seconds`. Else: nothing was taken, come back after so long."""

    taken: bool
    wait_seconds: float


def take(
    line: Line, *, now: datetime, interval_seconds: float, hold_seconds: float, was_here: bool
) -> tuple[Line, Turn]:
    """Take a turn, or a place in the line.

    Args:
        interval_seconds: between two calls.
        hold_seconds: the longest that somebody who has a turn may have to wait for it.
        was_here: whoever asks had a place in the line before.
    """
    interval, held_until = timedelta(seconds=interval_seconds), now + timedelta(seconds=hold_seconds)
    free_at = max(line.free_at, now)
    if free_at <= held_until and (was_here or line.ends_at <= held_until):
        return replace(line, free_at=free_at + interval), Turn(taken=True, wait_seconds=_seconds(free_at - now))
    place = max(line.ends_at, free_at)
    return replace(line, ends_at=place + interval), Turn(taken=False, wait_seconds=_seconds(place - now))


def _seconds(time: timedelta) -> float:
    return time.total_seconds()
