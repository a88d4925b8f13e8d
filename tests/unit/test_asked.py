"""The jobs of one message, and what becomes of the message."""

from itertools import permutations
from typing import Any, cast

import pytest

from imprimatur.broker import Delivery, Message
from imprimatur.errors import MalformedMessage
from imprimatur.identity import new_id
from imprimatur.wire.messages import Released, ReviewRequested
from reviewer.asked import Fate, asked_for


class Settled:
    """A delivery that notes how it was settled."""

    def __init__(self, body: bytes) -> None:
        self.message = Message(exchange="", routing_key="review.normal", body=body, message_id="m-1")
        self.how: list[str] = []

    def __getattr__(self, name: str) -> Any:
        async def settle() -> None:
            self.how.append(name)

        return settle


@pytest.fixture
def jobs() -> list[Released]:
    return [Released(job_id=new_id(), release_no=number) for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("fates", "how"),
    [
        ((Fate.DONE, Fate.DONE, Fate.DONE), "ack"),
        ((Fate.DONE, Fate.DONE, Fate.IMPOSSIBLE), "set_aside"),
        ((Fate.DONE, Fate.DONE, Fate.UNWANTED), "give_back"),
        ((Fate.DONE, Fate.IMPOSSIBLE, Fate.UNWANTED), "give_back"),
    ],
)
async def test_a_message_is_settled_once_by_the_worst_that_became_of_its_jobs(
    jobs: list[Released], fates: tuple[Fate, ...], how: str
) -> None:
    for order in permutations(fates):
        delivery = Settled(ReviewRequested(jobs=jobs).encode())
        every = asked_for(cast(Delivery, delivery))
        assert [one.released for one in every] == jobs
        assert {(one.message_id, one.queue) for one in every} == {("m-1", "review.normal")}
        for asked, fate in zip(every, order, strict=True):
            assert delivery.how == []
            await asked.settle(fate)
        assert delivery.how == [how]


def test_one_broken_job_makes_the_whole_message_unreadable(jobs: list[Released]) -> None:
    body = ReviewRequested(jobs=jobs).encode().replace(jobs[1].job_id.bytes, b"\0" * 16)
    assert [one.released.job_id.int for one in asked_for(cast(Delivery, Settled(body)))][1] == 0
    with pytest.raises(MalformedMessage):
        asked_for(cast(Delivery, Settled(body[:-4])))
