"""What is measured: Imprimatur and its peers, one module each, with one small face.

Each module has a class for the measuring process (`System`), and a `client` for the process that submits, which is
started by `load`. A module is imported in the measuring process, in the client's and, for peers, in the workers'.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from benchmarks.fleet import Fleet
from benchmarks.load import Loader


class System(Protocol):
    """One system with its servers, a worker's side that does nothing, and a client in a process of its own."""

    name: str
    fleet: Fleet
    loader: Loader

    def start(self) -> None:
        """Start everything; returns when it can work. `fleet.end` ends it."""
        ...

    def settings(self) -> Mapping[str, str]:
        """What it runs with, for the page: defaults where nothing is said."""
        ...

    def finished(self) -> int:
        """How many jobs have ended well so far, by the system's own record."""
        ...

    def states(self) -> str:
        """How many jobs are in which state, for the message of an error."""
        ...

    def started_at(self, ids: Sequence[str]) -> Mapping[str, float]:
        """When the work on each began, by the system's own record (seconds of the machine's clock)."""
        ...

    def ready(self) -> bool:
        """Whether it can work now."""
        ...
