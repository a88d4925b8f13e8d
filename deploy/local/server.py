"""What every private server has: a folder, a state file, a start that waits for an answer, and several ends.

How a particular server is launched and asked whether it is ready stands in `postgres` and `rabbitmq`.
"""

import json
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from deploy.local import process as processes
from deploy.local.ports import is_free
from deploy.local.process import Process

START_SECONDS = 60.0
STATE_FILE = "state.json"
LOG_FILE = "server.log"
_LOG_LINES = 40
_PORT_TAKEN = (
    "eaddrinuse",
    "address already in use",
    "port is already in use",
    "in use by another",
    "another process has",
)


class ServerDidNotStart(RuntimeError):
    """The server ended, or did not answer in time; the message carries the end of its log."""


class PortTaken(ServerDidNotStart):
    """It did not start because another program has one of its ports."""


class NothingStarted(LookupError):
    """The folder holds no state file: no private server was ever started in it."""


class PrivateServer(ABC):
    """A server process of ours. As a context manager: leaving the block stops it *and removes its data*."""

    #: What a stopping server is asked with.
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    #: How long it may take after that before SIGKILL.
    stop_seconds: ClassVar[float] = 30.0

    def __init__(self, folder: Path, process: Process | None = None) -> None:
        self.folder = folder
        self.process = process

    @abstractmethod
    def _launch(self) -> Process:
        """Start the process; return without waiting for it to be ready."""

    @abstractmethod
    def _ready(self) -> bool:
        """Whether it serves clients now; bounded in time."""

    @abstractmethod
    def _settings(self) -> Mapping[str, Any]:
        """What `attach` needs to build this object again, as JSON."""

    @abstractmethod
    def _remove_data(self) -> None:
        """Remove what the server stored; it is stopped."""

    def _end_helpers(self) -> None:  # noqa: B027  (most servers have none)
        """End the processes that are there for the server only and outlive its `kill`."""

    @property
    def log(self) -> Path:
        """The file all output of the server is appended to."""
        return self.folder / LOG_FILE

    def alive(self) -> bool:
        """Whether the server's process exists (suspended counts)."""
        return self.process is not None and self.process.alive()

    def pids(self) -> list[int]:
        """The pids of the server's processes now."""
        return [member.pid for member in self._family()]

    def stop(self) -> None:
        """Stop in good order (SIGKILL when that takes too long); keeps the data. Harmless when ended."""
        members = self._family()
        if self.process is not None:
            processes.resume(self.process)
            self.process.send(self.stop_signal)
            processes.wait_gone([self.process], self.stop_seconds)
        # Helpers of a server leave shortly after it.
        processes.wait_gone(members, 1.0)
        processes.end(members)
        self._end_helpers()
        self._forget()

    def kill(self) -> None:
        """SIGKILL the server and its children, as a crash of the machine would; keeps the data."""
        if self.process is not None:
            processes.kill(self.process)
        self._forget()

    def suspend(self) -> None:
        """Freeze all its processes (SIGSTOP): connections stay open and nothing answers."""
        if self.process is not None:
            processes.suspend(self.process)

    def resume(self) -> None:
        """Let a suspended server go on."""
        if self.process is not None:
            processes.resume(self.process)

    def restart(self) -> None:
        """Stop it, when it runs, and start it on the same data and ports; returns when it serves clients."""
        self.stop()
        self._come_up()

    def discard(self) -> None:
        """Stop it and remove its data and its state file; the log stays."""
        self.stop()
        self._remove_data()
        (self.folder / STATE_FILE).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def _family(self) -> list[Process]:
        return [] if self.process is None else processes.family(self.process)

    def _forget(self) -> None:
        self.process = None
        self._save()

    def _save(self) -> None:
        write_state(self.folder, process=self.process, settings=self._settings())

    @classmethod
    def _begin(cls, make: Callable[[], Self]) -> Self:
        """Make a server and bring it up; once more when another program took one of its free ports."""
        server = make()
        try:
            server._come_up()
        except PortTaken:
            server = make()
            server._come_up()
        return server

    def _come_up(self, timeout_seconds: float = START_SECONDS) -> None:
        """Launch and wait until ready. If that fails nothing is left running; the error has the log's end."""
        log_offset = self.log.stat().st_size if self.log.exists() else 0
        ready = False
        try:
            self._save()
            self.process = started = self._launch()
            self._save()
            answered = processes.wait_until(lambda: self._ready() or not started.alive(), timeout_seconds)
            # It must live still: on a taken port it may be another server that answered.
            ready = answered and started.alive()
            if not ready:
                took = "ended at its start" if answered else f"did not answer within {timeout_seconds:.0f} s"
                raise self._failure(took, log_offset)
        finally:
            if not ready:
                self.kill()
                self._end_helpers()
                self._forget()

    def _failure(self, what: str, log_offset: int) -> ServerDidNotStart:
        text = self.log.read_bytes()[log_offset:].decode(errors="replace")
        tail = "\n".join(text.splitlines()[-_LOG_LINES:])
        kind = PortTaken if names_a_taken_port(text) else ServerDidNotStart
        return kind(f"{type(self).__name__} in {self.folder} {what}. The end of {self.log}:\n{tail}")


def names_a_taken_port(log: str) -> bool:
    """Whether a server says that another program has its port."""
    return any(sign in log.lower() for sign in _PORT_TAKEN)


def require_free(port: int | None) -> None:
    """Raise PortTaken when a port that was asked for is in use."""
    if port is not None and not is_free(port):
        raise PortTaken(f"port {port} on 127.0.0.1 is already in use")


def write_state(folder: Path, *, process: Process | None, settings: Mapping[str, Any]) -> None:
    """Record in `folder` what runs there, for `attach`; whole or not at all."""
    state = {"process": None if process is None else asdict(process), "settings": dict(settings)}
    draft = folder / f"{STATE_FILE}.new"
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(state, indent=2) + "\n")
    draft.replace(folder / STATE_FILE)


def read_state(folder: Path) -> tuple[Process | None, dict[str, Any]]:
    """The process (None: stopped) and the settings that `write_state` recorded. Raises NothingStarted."""
    path = folder / STATE_FILE
    if not path.exists():
        raise NothingStarted(f"no private server was started in {folder}: {path} does not exist")
    state = json.loads(path.read_text())
    return None if state["process"] is None else Process(**state["process"]), state["settings"]


def earlier_settings(folder: Path) -> dict[str, Any]:
    """The settings of the server that ran in `folder` before, empty when none did; an error when it runs.

    Who starts it again takes the ports out of them: what was told of the addresses stays true where they are free, and
    a second try has others.
    """
    try:
        process, settings = read_state(folder)
    except NothingStarted:
        return {}
    if process is not None and process.alive():
        raise ServerDidNotStart(f"a server runs in {folder} already (pid {process.pid}): attach, or stop it")
    return settings


def remove_tree(path: Path) -> None:
    """Remove a folder of ours, when it is there."""
    shutil.rmtree(path, ignore_errors=True)
