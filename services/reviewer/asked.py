"""What the broker's messages ask for: jobs to claim. A message is settled once it is known what became of each of its
jobs; those that were claimed before it came back are claimed by nobody again."""

from collections.abc import Sequence
from enum import IntEnum

from imprimatur.broker import Delivery
from imprimatur.wire.messages import Released, ReviewRequested


class Fate(IntEnum):
    """What became of a job that was asked for; of a message, the greatest of its jobs'."""

    DONE = 0  #: claimed, or not there to be claimed any more
    IMPOSSIBLE = 1  #: it cannot be claimed here
    UNWANTED = 2  #: somebody else may have it, at once


class Asked:
    """One job of a message."""

    __slots__ = ("_all", "released")

    def __init__(self, released: Released, all_of_it: "_Message") -> None:
        self.released = released
        self._all = all_of_it

    @property
    def message_id(self) -> str:
        """Its message's."""
        return self._all.delivery.message.message_id

    @property
    def queue(self) -> str:
        """Where its message came from."""
        return self._all.delivery.message.routing_key

    async def settle(self, fate: Fate) -> None:
        """Say what became of it, once."""
        await self._all.settle(fate)


class _Message:
    def __init__(self, delivery: Delivery, number: int) -> None:
        self.delivery = delivery
        self._open = number
        self._fate = Fate.DONE

    async def settle(self, fate: Fate) -> None:
        self._open -= 1
        self._fate = max(self._fate, fate)
        if self._open:
            return
        match self._fate:
            case Fate.DONE:
                await self.delivery.ack()
            case Fate.IMPOSSIBLE:
                await self.delivery.set_aside()
            case Fate.UNWANTED:
                await self.delivery.give_back()


def asked_for(delivery: Delivery) -> Sequence[Asked]:
    """The jobs that a message asks for.

    Raises:
        imprimatur.errors.MalformedMessage: it cannot be read.
    """
    jobs = ReviewRequested.decode(delivery.message.body).jobs
    whole = _Message(delivery, len(jobs))
    return [Asked(one, whole) for one in jobs]
