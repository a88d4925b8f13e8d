"""An engine whose creatives may kill the process that looks at them; what it did is told by files in a folder.

It is opened in child processes too, and so imports little.
"""

import asyncio
import os
import signal
from pathlib import Path
from typing import NoReturn

from imprimatur.errors import RateLimited, TransientError, UnreviewableInput
from imprimatur.evidence import Category, Creative, EngineIdentity, Evidence, Recommendation
from reviewer.children import ChildPool
from reviewer.engines.apart import MOST_BYTES

IDENTITY = EngineIdentity(name="deadly", version="1")

APPROVE = "approve"
KILL = "kill"  #: SIGKILL to the process that looks at it
EXIT = "exit"  #: leaves the process
KILL_CHILD = "kill-child"  #: SIGKILL to a child process of the engine's own
WAIT = "wait"  #: until the folder's gate is open, then approves
KILL_TOGETHER = (
    "kill-together"  #: "kill-together 5": SIGKILL once five creatives are in the process, or the gate is open
)
FAIL = "fail"  #: a transient error at the first look, then approves
LIMITED = "limited"  #: a rate limit at the first look, then approves
BREAK = "break"  #: raises at the first look what an engine must not raise, then approves
UNREADABLE = "unreadable"
HOARD = "hoard"  #: takes more memory than a suspect's process may


class Looks:
    """A folder that tells, over all processes, which process looked at what, and holds the gate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, creative_id: str) -> None:
        """This process looks at this creative."""
        (self._folder / f"{creative_id}.{os.getpid()}").touch()

    def at(self, creative_id: str) -> list[int]:
        """The processes that looked at it."""
        return [int(mark.suffix[1:]) for mark in self._folder.glob(f"{creative_id}.*")]

    def by(self, pid: int) -> int:
        """At how many creatives the process looked."""
        return len(list(self._folder.glob(f"*.{pid}")))

    def open_gate(self) -> None:
        """Let all go on that wait."""
        (self._folder / "gate").touch()

    @property
    def gate_is_open(self) -> bool:
        """Whether nobody waits."""
        return (self._folder / "gate").exists()


class DeadlyEngine:
    """An `Engine` that does what the headline says, in the process in which it is opened."""

    def __init__(self, folder: Path) -> None:
        self.identity = IDENTITY
        self._looks = Looks(folder)
        self._pool = ChildPool(1)

    async def examine(self, creative: Creative) -> Evidence:
        """Leave a mark, then do what the headline says."""
        self._looks.begin(creative.creative_id)
        first = len(self._looks.at(creative.creative_id)) == 1
        script, _, argument = creative.headline.partition(" ")
        match script:
            case "kill":
                _kill_this_process()
            case "exit":
                os._exit(3)
            case "kill-child":
                await self._pool.run(_kill_this_process)
            case "wait":
                await self._until_gate_opens_or()
            case "kill-together":
                await self._until_gate_opens_or(together=int(argument))
                _kill_this_process()
            case "hoard":
                bytearray(MOST_BYTES)
            case "fail" if first:
                raise TransientError("the provider answered 503", code="provider_error", stage="examining")
            case "limited" if first:
                raise RateLimited("the provider asks to wait", retry_after_seconds=0.05)
            case "break" if first:
                raise LookupError("a bug")
            case "unreadable":
                raise UnreviewableInput("images[0]: is not an image", stage="reading")
        return _APPROVAL

    async def close(self) -> None:
        """End the child, if it has one."""
        await self._pool.close()

    async def _until_gate_opens_or(self, *, together: int = 1_000_000) -> None:
        while not self._looks.gate_is_open and self._looks.by(os.getpid()) < together:  # noqa: ASYNC110 (other processes set no event)
            await asyncio.sleep(0.01)


def _kill_this_process() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody survives it")


_APPROVAL = Evidence(
    engine=IDENTITY,
    approval_score=0.97,
    recommendation=Recommendation.APPROVE,
    reason="It was looked at.",
    categories=(),
    examined_categories=frozenset(Category),
)


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits for its parent to look does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def own_children() -> set[int]:
    """The child processes of this one that run; the servers of other tests are among them."""
    lists = (tasks.read_text() for tasks in Path("/proc/self/task").glob("*/children"))
    return {child for listed in lists for child in map(int, listed.split()) if alive(child)}
