"""Operating-system processes: start one, recognise it later, signal it and its descendants, see it gone.

Knows nothing of RabbitMQ or PostgreSQL. Never finds a process by name: only by a pid together with its birth,
so that a pid the system gave to someone else meanwhile is left alone.
"""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

POLL_SECONDS = 0.02

#: Children of this process, kept so that their end can be collected; a pid leaves when it has been.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process for the whole of its life, also as seen from another process than its parent."""

    pid: int
    #: When it began, as the system tells it; with the pid it is unique, even over a reboot.
    birth: str

    def alive(self) -> bool:
        """Whether it still exists. A zombie does not count, and is collected when it is our child."""
        seen = _look(self.pid)
        if seen is None or seen.birth != self.birth:
            return False
        if not seen.dead:
            return True
        child = _children.get(self.pid)
        if child is None:
            return False
        if child.poll() is None:
            return True
        _children.pop(self.pid, None)
        return False

    def send(self, number: signal.Signals) -> None:
        """Signal this very process; do nothing when it is gone."""
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def stopped(self) -> bool:
        """Whether SIGSTOP has taken effect."""
        seen = _look(self.pid)
        return seen is not None and seen.birth == self.birth and seen.state == "T"


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """One line of the system's table of processes."""

    state: str
    parent: int
    birth: str
    threads: int = 1

    @property
    def dead(self) -> bool:
        """A zombie of several threads is not: they are still ending, and hold its ports until then."""
        return self.state in {"Z", "X"} and self.threads <= 1


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path,
    environ: Mapping[str, str],
    user: str | None = None,
    die_with_parent: bool = False,
) -> Process:
    """Start `command` in a session of its own, its output appended to `log`.

    `user` (root only) is the account it runs under. With `die_with_parent` the kernel kills it when this
    process ends, however that happens (Linux); elsewhere it is killed when the interpreter exits by itself.
    """
    words = [*privileges(user, die_with_parent=die_with_parent), *map(str, command)]

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environ),
                cwd="/",
                start_new_session=True,
            )

    # The kernel's "parent" is the thread that forked, not the process: a thread that lasts must do it.
    child = _lasting_thread(os.getpid()).submit(start).result()
    _children[child.pid] = child
    seen = _look(child.pid)
    process = Process(pid=child.pid, birth=seen.birth if seen else "")
    if die_with_parent and sys.platform != "linux":
        atexit.register(process.send, signal.SIGKILL)
    return process


def privileges(user: str | None, *, die_with_parent: bool = False) -> list[str]:
    """The words before a command that make it run as `user` and, on Linux, die with its parent."""
    words: list[str] = []
    if user is not None:
        words += [f"--reuid={user}", f"--regid={user}", "--init-groups"]
    if die_with_parent and sys.platform == "linux":
        words += ["--pdeathsig", "KILL"]
    if not words:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise FileNotFoundError(
            "setpriv (package util-linux) is needed to run a server as another user or to let it die with us"
        )
    return [setpriv, *words, "--"]


@cache
def _lasting_thread(pid: int) -> ThreadPoolExecutor:  # noqa: ARG001  (one per process, also after a fork)
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="parent-of-servers")


def family(root: Process) -> list[Process]:
    """`root`, when it lives, and all its descendants now."""
    if not root.alive():
        return []
    table = _look_at_all()
    found = [root]
    for member in found:
        found += [
            Process(pid=pid, birth=seen.birth)
            for pid, seen in table.items()
            if seen.parent == member.pid and not seen.dead
        ]
    return found


def suspend(root: Process, *, timeout_seconds: float = 5.0) -> None:
    """SIGSTOP `root` and its descendants; return when all of them stand still.

    The root goes first, so that it starts no further children while they are counted.
    """
    root.send(signal.SIGSTOP)
    wait_until(lambda: root.stopped() or not root.alive(), timeout_seconds)
    members = family(root)
    for member in members:
        member.send(signal.SIGSTOP)
    if not wait_until(lambda: all(m.stopped() or not m.alive() for m in members), timeout_seconds):
        raise TimeoutError(f"process {root.pid} did not stand still within {timeout_seconds} s")


def resume(root: Process) -> None:
    """SIGCONT `root` and its descendants, children first."""
    for member in reversed(family(root)):
        member.send(signal.SIGCONT)


def kill(root: Process, *, timeout_seconds: float = 10.0) -> None:
    """SIGKILL `root` and its descendants; return when they are gone."""
    root.send(signal.SIGSTOP)
    end(family(root), timeout_seconds=timeout_seconds)


def end(processes: Iterable[Process], *, timeout_seconds: float = 10.0) -> None:
    """SIGKILL exactly these; return when they are gone."""
    members = list(processes)
    for member in members:
        member.send(signal.SIGKILL)
    if not wait_gone(members, timeout_seconds):
        left = [member.pid for member in members if member.alive()]
        raise TimeoutError(f"processes {left} survived SIGKILL for {timeout_seconds} s")


def wait_gone(processes: Iterable[Process], timeout_seconds: float) -> bool:
    """Whether all of them have ended within `timeout_seconds`."""
    members = list(processes)
    # A list, not a generator: each must be asked, since asking is what collects a zombie.
    return wait_until(lambda: not any([member.alive() for member in members]), timeout_seconds)  # noqa: C419


def wait_until(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    """Ask `condition` until it holds; False when `timeout_seconds` pass first."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _look(pid: int) -> _Seen | None:
    """What the system says of `pid`, None when there is no such process."""
    if not Path("/proc/self/stat").exists():
        return _ask_ps("-p", str(pid)).get(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # pid (name) state parent …; the name may hold spaces and brackets. Field 22: start, in ticks since boot.
    fields = text.rpartition(")")[2].split()
    state, parent, threads, start = fields[0], int(fields[1]), int(fields[17]), fields[19]
    return _Seen(state=state, parent=parent, threads=threads, birth=f"{_boot()}/{start}")


def _look_at_all() -> dict[int, _Seen]:
    if not Path("/proc/self/stat").exists():
        return _ask_ps("-ax")
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {pid: seen for pid in pids if (seen := _look(pid)) is not None}


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _ask_ps(*selection: str) -> dict[int, _Seen]:
    """The same from `ps`, where there is no /proc (macOS)."""
    command = ["ps", *selection, "-o", "pid=,ppid=,state=,lstart="]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (line.split(maxsplit=3) for line in answer.stdout.splitlines())
    return {
        int(pid): _Seen(state=state[0], parent=int(parent), birth=birth.strip()) for pid, parent, state, birth in lines
    }
