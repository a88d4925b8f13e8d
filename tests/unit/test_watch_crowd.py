"""Who wakes together goes on in groups, first come first, and looks once more when its turn has come."""

import asyncio
from itertools import pairwise

from gateway.watching import Crowd


async def _turns_of_the_loop(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def _going(crowd: Crowd, number: int) -> tuple[list[int], list[asyncio.Task[None]]]:
    """So many who come at once; the list says who has had its turn."""
    went: list[int] = []

    async def go(place: int) -> None:
        await crowd.turn()
        went.append(place)

    return went, [asyncio.create_task(go(place)) for place in range(number)]


async def test_a_crowd_goes_on_in_groups_in_the_order_in_which_it_came() -> None:
    went, tasks = await _going(Crowd(at_once=3), 10)
    seen = []
    while len(went) < 10:
        seen.append(len(went))
        await _turns_of_the_loop(1)
    await asyncio.gather(*tasks)
    assert went == list(range(10))
    assert max(after - before for before, after in pairwise(seen)) <= 3
    assert len(set(seen)) >= 4


async def test_who_leaves_the_line_takes_nobodys_turn_and_whoever_comes_later_stands_behind() -> None:
    crowd = Crowd(at_once=2)
    went, tasks = await _going(crowd, 6)
    await _turns_of_the_loop(1)
    for task in tasks[2:4]:
        task.cancel()
    late, latecomers = await _going(crowd, 1)
    await asyncio.gather(*tasks, *latecomers, return_exceptions=True)
    assert went == [0, 1, 4, 5]
    assert late == [0]


async def test_without_a_crowd_nobody_waits() -> None:
    crowd = Crowd(at_once=2)
    for _ in range(5):
        turn = asyncio.ensure_future(crowd.turn())
        await _turns_of_the_loop(1)
        assert turn.done()
        await _turns_of_the_loop(1)
