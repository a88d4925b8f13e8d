"""Engines look at a creative and return evidence. They never decide, and never touch storage or broker.

What an engine can do besides, it says by its bases: it is looked at for each creative, where a Protocol is slow.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from imprimatur.criteria import Criteria
from imprimatur.evidence import Creative, EngineIdentity, Evidence


class Engine(Protocol):
    """One way to examine creatives. Chosen by configuration; never a silent fallback to another."""

    @property
    def identity(self) -> EngineIdentity:
        """Name, version and model, recorded in every result."""
        ...

    async def examine(self, creative: Creative) -> Evidence:
        """Look at every part of the creative.

        Raises:
            imprimatur.errors.AttemptError: the attempt failed; its class says whether it may be retried.
        """
        ...

    async def close(self) -> None:
        """Give back processes and connections."""
        ...


class Starting(ABC):
    """An engine that can get everything ready before its first creative comes."""

    @abstractmethod
    async def start(self) -> None:
        """Get ready.

        Raises:
            imprimatur.errors.AttemptError: it cannot start.
        """


class Asking(ABC):
    """An engine that asks a provider, who wants to be paid, and who may be away."""

    #: Who is asked, as metrics and limits name it.
    provider: str

    @abstractmethod
    def require_ready(self) -> None:
        """Make sure that there is sense in asking now.

        Raises:
            imprimatur.errors.NotBegun: the provider has just failed again and again.
        """


class Choosing(ABC):
    """An engine with more than one model."""

    @abstractmethod
    def with_model(self, name: str) -> Engine:
        """The same engine with the model of that name.

        Raises:
            imprimatur.errors.PermanentError: it has none of that name.
        """


class Judging(ABC):
    """An engine that examines a tenant's free-text criteria, too. The evidence of any other names none as examined."""

    @abstractmethod
    def with_criteria(self, criteria: Criteria) -> Engine:
        """The same engine, which looks whether creatives break these criteria, besides all else."""


class Seeing(ABC):
    """An engine that looks at what images show."""

    #: Of an image with a longer side it does not see all, and says so.
    image_side_px: int


#: `async with open_engine() as engine: ...`: an engine for the block alone. Entering may take long.
OpenEngine = Callable[[], AbstractAsyncContextManager[Engine]]


@dataclass(kw_only=True)
class Receipt:
    """What was paid for in an attempt without a product: an examination that was cut short, or had to be repeated."""

    engine: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int = 0


_receipt: ContextVar[Receipt] = ContextVar("receipt")


@contextmanager
def receiving() -> Iterator[Receipt]:
    """Inside the block, examinations that come to nothing note here what they had cost."""
    receipt = Receipt()
    before = _receipt.set(receipt)
    try:
        yield receipt
    finally:
        _receipt.reset(before)


def note_cost(engine: str, *, input_tokens: int, output_tokens: int, cost_micros: int) -> None:
    """Note what was paid for in vain."""
    receipt = _receipt.get(None)
    if receipt is not None:
        receipt.engine = engine
        receipt.input_tokens += input_tokens
        receipt.output_tokens += output_tokens
        receipt.cost_micros += cost_micros


#: Whether the attempt's time-out has struck, as the cancellation that it is does not tell.
_out_of_time: ContextVar[Callable[[], bool]] = ContextVar("out_of_time")


@contextmanager
def timed_by(expired: Callable[[], bool]) -> Iterator[None]:
    """Inside the block, examinations can ask whether their time was over when they were cancelled."""
    before = _out_of_time.set(expired)
    try:
        yield
    finally:
        _out_of_time.reset(before)


def out_of_time() -> bool:
    """Whether the present attempt has run into its time-out."""
    return _out_of_time.get(lambda: False)()
