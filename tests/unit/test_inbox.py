"""Jobs in hand."""

import asyncio
from typing import Any, cast

import pytest

from imprimatur.job import Priority
from reviewer import inbox as inboxes
from reviewer.asked import Asked
from reviewer.inbox import Inbox


def job(name: str) -> Asked:
    """Nothing of it is looked at here but which one it is."""
    return cast(Asked, name)


@pytest.fixture
def chance(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is drawn next, again and again."""
    drawn = [0.0]
    monkeypatch.setattr(cast(Any, inboxes).random, "random", lambda: drawn[0])
    return drawn


async def test_the_higher_priority_goes_first_save_for_the_share_of_the_others(chance: list[float]) -> None:
    inbox = Inbox(lambda _: None)
    for priority, name in ((Priority.LOW, "low"), (Priority.NORMAL, "normal"), (Priority.HIGH, "high")):
        inbox.put(priority, job(name))
        inbox.put(priority, job(f"{name} too"))
    assert await inbox.next() == job("high")
    chance[0] = 0.96
    assert await inbox.next() == job("low")
    chance[0] = 0.76
    assert await inbox.next() == job("normal")
    chance[0] = 0.0
    assert [await inbox.next() for _ in range(3)] == [job(f"{name} too") for name in ("high", "normal", "low")]


async def test_who_waits_for_a_message_gets_it_when_it_comes() -> None:
    inbox = Inbox(lambda _: None)
    waiting = asyncio.ensure_future(inbox.next())
    await asyncio.sleep(0)
    inbox.put(Priority.LOW, job("late"))
    assert await waiting == job("late")


async def test_messages_without_a_slot_are_given_up_in_their_order_and_the_others_stay() -> None:
    given_up: list[Asked] = []
    all_three = asyncio.Event()

    def tired(asked: Asked) -> None:
        given_up.append(asked)
        if len(given_up) == 3:
            all_three.set()

    inbox = Inbox(tired, patience_seconds=0.01)
    inbox.put(Priority.HIGH, job("taken"))
    assert await inbox.next() == job("taken")
    for name in ("a", "b"):
        inbox.put(Priority.NORMAL, job(name))
    inbox.put(Priority.LOW, job("c"))
    async with asyncio.timeout(30):
        await all_three.wait()
    assert set(given_up) == {job(name) for name in "abc"}
    assert given_up.index(job("a")) < given_up.index(job("b"))
    inbox.put(Priority.LOW, job("d"))
    assert await inbox.next() == job("d")


async def test_what_is_forgotten_does_not_come_back() -> None:
    given_up: list[Asked] = []
    inbox = Inbox(given_up.append, patience_seconds=0.01)
    inbox.put(Priority.HIGH, job("gone"))
    inbox.clear()
    inbox.put(Priority.LOW, job("here"))
    assert await inbox.next() == job("here")
    assert given_up == []
