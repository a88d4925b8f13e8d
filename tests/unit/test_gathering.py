"""Group commit: what arrives while one batch is written is written together as the next."""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from imprimatur import gathering as gatherings
from imprimatur.errors import Locked, Unavailable
from imprimatur.gathering import Gathering


class Table:
    """Takes batches while `gate` is open; refuses a batch with a "bad" item whole, and an "own fault" by itself. Others
    keep `locked` items locked, until they are `unlocked`."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.reachable = True
        self.locked: set[str] = set()
        self.unlocked = asyncio.Event()

    async def write(self, items: Sequence[str], lock_seconds: float | None) -> list[str | Exception]:
        self.batches.append(list(items))
        self.begun.set()
        if self.locked & {*items} and not self.unlocked.is_set():
            if lock_seconds is not None:
                raise Locked("others keep it locked")
            await self.unlocked.wait()
        await self.gate.wait()
        if not self.reachable:
            raise Unavailable("out of reach")
        if "bad" in items:
            raise ValueError("a bad item")
        return [KeyError(item) if item == "own fault" else item.upper() for item in items]

    async def closed_with(self, gathering: "Gathering[str, str]", item: str) -> "asyncio.Future[str]":
        """Closes the gate in front of `item`, so that what comes now comes while a batch is written."""
        self.gate.clear()
        self.begun.clear()
        first = gathering.put(item)
        await self.begun.wait()
        return first


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def gathering(table: Table) -> "Gathering[str, str]":
    return Gathering("test", table.write, most=3)


async def test_a_lone_item_is_written_at_once(table: Table, gathering: "Gathering[str, str]") -> None:
    assert await gathering.add("a") == "A"
    assert await gathering.add("b") == "B"
    assert table.batches == [["a"], ["b"]]


async def test_what_comes_while_a_batch_is_written_is_written_together_in_order_and_not_too_much_of_it(
    table: Table, gathering: "Gathering[str, str]"
) -> None:
    first = await table.closed_with(gathering, "first")
    others = [asyncio.create_task(gathering.add(name)) for name in "abcd"]
    await asyncio.sleep(0)
    table.gate.set()
    assert await asyncio.gather(first, *others) == ["FIRST", "A", "B", "C", "D"]
    assert table.batches == [["first"], ["a", "b", "c"], ["d"]]


async def test_in_company_a_batch_lingers_for_those_right_behind_and_alone_it_does_not(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathering = Gathering("test", table.write, most=3, linger_seconds=0.5)
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        gathering.put("right behind")
        await sleep(0)

    monkeypatch.setattr("imprimatur.gathering.asyncio.sleep", pause)
    await gathering.add("alone")
    await asyncio.gather(gathering.put("a"), gathering.put("b"))
    await gathering.add("c")
    await gathering.add("d")
    await asyncio.gather(*map(gathering.put, "xyz"))
    assert pauses == [0.5, 0.5]
    assert table.batches[:3] == [["alone"], ["a", "b"], ["c", "right behind"]]
    assert table.batches[3:] == [["d", "right behind"], ["x", "y", "z"]]


@pytest.mark.parametrize(("together", "lingers_seconds"), [(2, 0.004), (6, 0.006), (40, 0.02)])
async def test_the_more_come_the_longer_a_batch_lingers_within_its_bounds(
    table: Table, monkeypatch: pytest.MonkeyPatch, together: int, lingers_seconds: float
) -> None:
    gathering = Gathering("test", table.write, linger_seconds=0.004, longest_linger_seconds=0.02)
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr("imprimatur.gathering.asyncio.sleep", pause)
    await asyncio.gather(*(gathering.put(str(number)) for number in range(together)))
    await gathering.add("next")
    assert pauses == [pytest.approx(lingers_seconds)]


async def test_an_item_whose_caller_is_cancelled_before_its_turn_is_not_written(
    table: Table, gathering: "Gathering[str, str]"
) -> None:
    first = await table.closed_with(gathering, "first")
    impatient, patient = (asyncio.create_task(gathering.add(name)) for name in ("impatient", "patient"))
    taken_back = gathering.put("taken back")
    await asyncio.sleep(0)
    impatient.cancel()
    taken_back.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    table.gate.set()
    assert (await first, await patient) == ("FIRST", "PATIENT")
    assert impatient.cancelled()
    assert table.batches == [["first"], ["patient"]]


async def test_what_is_taken_back_takes_no_place_in_a_batch(table: Table, gathering: "Gathering[str, str]") -> None:
    first = await table.closed_with(gathering, "first")
    taken_back = [gathering.put(f"taken back {number}") for number in range(5)]
    kept = [gathering.put(name) for name in "abc"]
    for one in taken_back:
        one.cancel()
    table.gate.set()
    await asyncio.gather(first, *kept)
    assert table.batches == [["first"], ["a", "b", "c"]]


async def test_when_all_is_taken_back_nothing_is_written_and_the_next_item_is(
    table: Table, gathering: "Gathering[str, str]"
) -> None:
    first = await table.closed_with(gathering, "first")
    gathering.put("taken back").cancel()
    table.gate.set()
    await first
    await gathering.drained()
    assert await gathering.add("next") == "NEXT"
    assert table.batches == [["first"], ["next"]]


async def test_an_item_whose_caller_is_cancelled_while_it_is_written_is_written(
    table: Table, gathering: "Gathering[str, str]"
) -> None:
    table.gate.clear()
    impatient, patient = (asyncio.create_task(gathering.add(name)) for name in ("impatient", "patient"))
    await table.begun.wait()
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert not patient.done()
    table.gate.set()
    assert await patient == "PATIENT"
    assert table.batches == [["impatient", "patient"]]


async def test_a_fault_that_is_an_items_own_is_raised_to_whoever_added_it(
    table: Table, gathering: "Gathering[str, str]"
) -> None:
    adding = [gathering.add(name) for name in ("good", "own fault", "fine")]
    answers = await asyncio.gather(*adding, return_exceptions=True)
    assert [answers[0], type(answers[1]), answers[2]] == ["GOOD", KeyError, "FINE"]
    assert table.batches == [["good", "own fault", "fine"]]


async def test_one_bad_item_fails_alone(table: Table, gathering: "Gathering[str, str]") -> None:
    answers = await asyncio.gather(*map(gathering.add, ("good", "bad", "fine")), return_exceptions=True)
    assert [answers[0], type(answers[1]), answers[2]] == ["GOOD", ValueError, "FINE"]
    assert table.batches == [["good", "bad", "fine"], ["good"], ["bad"], ["fine"]]


async def test_a_lone_bad_item_is_not_written_twice(table: Table, gathering: "Gathering[str, str]") -> None:
    with pytest.raises(ValueError, match="a bad item"):
        await gathering.add("bad")
    assert table.batches == [["bad"]]


async def test_an_unreachable_database_is_not_asked_for_each_item(
    table: Table, gathering: "Gathering[str, str]"
) -> None:
    table.reachable = False
    answers = await asyncio.gather(*map(gathering.add, "abc"), return_exceptions=True)
    assert all(isinstance(answer, Unavailable) for answer in answers)
    assert len(table.batches) == 1
    table.reachable = True
    assert await gathering.add("d") == "D"


async def test_one_that_others_keep_locked_waits_alone(table: Table, gathering: "Gathering[str, str]") -> None:
    table.locked = {"locked"}
    locked, *others = [gathering.put(name) for name in ("locked", "good", "fine")]
    assert await asyncio.gather(*others) == ["GOOD", "FINE"]
    assert await asyncio.gather(*map(gathering.add, "abc")) == ["A", "B", "C"]
    assert not locked.done()
    table.unlocked.set()
    assert await locked == "LOCKED"
    assert table.batches[0] == ["locked", "good", "fine"]
    assert table.batches[-1] == ["a", "b", "c"]


async def test_a_lone_one_that_others_keep_locked_holds_up_nobody(
    table: Table, gathering: "Gathering[str, str]"
) -> None:
    table.locked = {"locked"}
    locked = gathering.put("locked")
    assert await gathering.add("a") == "A"
    table.unlocked.set()
    assert await locked == "LOCKED"


async def test_as_many_as_there_are_that_others_keep_locked_hold_up_nobody(
    table: Table, gathering: "Gathering[str, str]"
) -> None:
    names = [f"locked {number}" for number in range(20)]
    table.locked = {*names}
    locked = [gathering.put(name) for name in names]
    assert await gathering.add("a") == "A"
    draining = asyncio.create_task(gathering.drained())
    table.unlocked.set()
    assert await asyncio.gather(*locked) == [name.upper() for name in names]
    await draining


async def test_one_that_is_taken_back_while_others_keep_it_locked_is_not_written_any_more(
    table: Table, gathering: "Gathering[str, str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gatherings, "_WAITS_AT_ONCE", 1)
    gathering = Gathering("test", table.write, most=3)
    table.locked = {"first", "second"}
    first, second = gathering.put("first"), gathering.put("second")
    await gathering.add("a")
    tried = table.batches.count(["second"])
    second.cancel()
    table.unlocked.set()
    await gathering.drained()
    assert first.result() == "FIRST"
    assert table.batches.count(["second"]) == tried


async def test_who_finds_no_place_to_wait_is_told_to_come_again(
    table: Table, gathering: "Gathering[str, str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gatherings, "_LONGEST_WITHOUT_PLACE_SECONDS", 0.0)
    table.locked = {"locked"}
    with pytest.raises(Unavailable, match="others keep locked"):
        await gathering.add("locked")


async def test_what_is_written_together_is_written_in_no_callers_context() -> None:
    """Else the log would say that what befalls all of them befell the one that came first."""
    who: ContextVar[str] = ContextVar("who")
    who.set("the process")

    async def write(items: Sequence[str], _lock_seconds: float | None) -> list[str]:
        return [who.get() for _ in items]

    async def call(gathering: "Gathering[str, str]", name: str) -> str:
        who.set(name)
        return await gathering.add(name)

    gathering = Gathering("test", write)
    calls = [call(gathering, name) for name in ("ada", "bob")]
    assert await asyncio.gather(*calls) == ["the process"] * 2


async def test_drained_is_when_nothing_waits_any_more(table: Table, gathering: "Gathering[str, str]") -> None:
    await gathering.drained()  # nothing was ever added
    first = await table.closed_with(gathering, "first")
    others = [gathering.put(name) for name in "abcd"]
    draining = asyncio.create_task(gathering.drained())
    await asyncio.sleep(0)
    late = gathering.put("late")
    assert not draining.done()
    table.gate.set()
    await draining
    assert [answer.result() for answer in (first, *others, late)] == ["FIRST", "A", "B", "C", "D", "LATE"]
