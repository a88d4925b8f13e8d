"""What follows an attempt to deliver, and how much may be under way at once."""

from datetime import UTC, datetime

import pytest

from notifier.room import Limits, Room
from notifier.schedule import (
    RECOMMENDED_PAUSES_SECONDS,
    Abandoned,
    Again,
    Delivered,
    Verdict,
    after_attempt,
    retry_after,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def after(
    status: int | None, *, attempts_before: int = 0, retry_after_seconds: float | None = None, jitter: float = 0.0
) -> Verdict:
    return after_attempt(
        status,
        attempts_before=attempts_before,
        pauses_seconds=RECOMMENDED_PAUSES_SECONDS,
        retry_after_seconds=retry_after_seconds,
        jitter=jitter,
    )


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_is_delivered(status: int) -> None:
    assert after(status) == Delivered()


@pytest.mark.parametrize("status", [None, 100, 301, 302, 400, 401, 404, 429, 500, 503])
def test_everything_else_is_tried_again_after_five_seconds(status: int | None) -> None:
    assert after(status) == Again(delay_seconds=5.0)


def test_gone_is_given_up_at_once() -> None:
    assert after(410) == Abandoned()


def test_the_pauses_are_the_recommended_ones_and_then_it_is_given_up() -> None:
    verdicts = [after(500, attempts_before=spent) for spent in range(10)]

    assert verdicts[:-1] == [Again(delay_seconds=pause) for pause in RECOMMENDED_PAUSES_SECONDS]
    assert verdicts[-1] == Abandoned()


def test_jitter_prolongs_by_a_fifth_at_most() -> None:
    assert after(500, attempts_before=1, jitter=0.5) == Again(delay_seconds=330.0)


def test_a_busy_receiver_may_ask_for_a_longer_pause_within_a_day() -> None:
    assert after(429, retry_after_seconds=120.0) == Again(delay_seconds=120.0)
    assert after(503, retry_after_seconds=1.0) == Again(delay_seconds=5.0)
    assert after(503, retry_after_seconds=1e9) == Again(delay_seconds=86400.0)


def test_a_broken_receiver_may_not() -> None:
    assert after(500, retry_after_seconds=120.0) == Again(delay_seconds=5.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("30", 30.0),
        (" 0 ", 0.0),
        ("Sun, 01 Mar 2026 12:01:30 GMT", 90.0),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("Sun, 01 Mar 2026 12:01:30 -0000", 90.0),
        ("soon", None),
        ("-5", None),
        ("", None),
        ("9" * 400, 9999999999.0),
    ],
)
def test_retry_after_is_read_as_a_number_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


def test_a_slow_host_fills_its_own_room_only() -> None:
    room = Room(Limits(total=10, per_host=2, per_tenant=9))
    room.enter("a:slow.example", 2)

    assert room.free_in("a:slow.example") == 0
    assert room.free_in("b:slow.example") == 0
    assert room.free_in("a:fast.example") == 2


def test_a_tenant_with_many_hosts_fills_its_own_room_only() -> None:
    room = Room(Limits(total=10, per_host=2, per_tenant=3))
    for host in ("one", "two", "three"):
        room.enter(f"a:{host}")

    assert room.free_in("a:four") == 0
    assert room.free_in("b:four") == 2


def test_what_leaves_makes_room() -> None:
    room = Room(Limits(total=1, per_host=1, per_tenant=1))
    room.enter("a:one")
    planned = room.copy()
    room.leave("a:one")

    assert room.free_in("a:one") == 1
    assert planned.free_in("a:one") == 0
