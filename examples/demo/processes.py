"""The demo's two processes: `imprimatur serve` on a fresh folder, and the webhook receiver. Nothing else lives here."""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local import process as processes
from deploy.local.process import Process
from examples import webhook_receiver

_START_SECONDS = 120.0
_STOP_SECONDS = 10.0
_LOG_LINES = 25


class DemoFailed(Exception):
    """What is wrong, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """Both processes, and how to reach them."""

    folder: Path
    target: str
    api_key: str
    callback_url: str

    @property
    def received(self) -> Path:
        """What the receiver verified, a JSON object a line."""
        return self.folder / "webhooks.jsonl"


@asynccontextmanager
async def running() -> AsyncIterator[Running]:
    """Both processes inside the block; afterwards they are gone, and so is their folder.

    Raises:
        DemoFailed: one of them does not start, or anything else failed: with the server's last words added.
    """
    folder = Path(tempfile.mkdtemp(prefix="imprimatur-demo-"))
    started: dict[str, Process] = {}
    try:
        access = await _serve(folder, started)
        yield Running(
            folder=folder,
            target=access["target"],
            api_key=access["api_key"],
            callback_url=await _receive(folder, access["webhook_secret"], started),
        )
    except Exception as fault:
        ended = [f"{name} is not running any more." for name, process in started.items() if not process.alive()]
        words = "\n".join(dict.fromkeys([*ended, *_words(fault)]))
        raise DemoFailed(f"{words}\n\nThe end of the server's log:\n{_tail(folder / 'serve.log')}") from fault
    finally:
        _stop(list(started.values())[::-1])
        shutil.rmtree(folder, ignore_errors=True)


async def _serve(folder: Path, started: dict[str, Process]) -> dict[str, str]:
    """Start the server; returns what it leaves in client.json once it is ready."""
    data = folder / "data"
    command = [sys.executable, "-m", "cli", "serve", "--data", str(data), "--port", "0", "--metrics-port", "0"]
    server = started["imprimatur serve"] = _spawn(command, folder / "serve.log", dict(os.environ))
    left = data / "client.json"
    await _until(left.exists, server, "imprimatur serve")
    access: dict[str, str] = json.loads(left.read_text())
    return access


async def _receive(folder: Path, secret: str, started: dict[str, Process]) -> str:
    """Start the receiver; returns its address, which it prints at the end of its first line."""
    log = folder / "receiver.log"
    command = [sys.executable, webhook_receiver.__file__, "--out", str(folder / "webhooks.jsonl"), "--port", "0"]
    environ = {**os.environ, webhook_receiver.SECRET_VARIABLE: secret}
    receiver = started["the webhook receiver"] = _spawn(command, log, environ)
    await _until(lambda: log.read_text().endswith("\n"), receiver, "the webhook receiver")
    return log.read_text().splitlines()[0].split()[-1]


def _spawn(command: list[str], log: Path, environ: dict[str, str]) -> Process:
    """In a session of its own: Ctrl-C is ours, and we end what we started in good order."""
    dies_with_us = shutil.which("setpriv") is not None
    return processes.spawn(command, log=log, environ=environ, die_with_parent=dies_with_us)


async def _until(ready: Callable[[], bool], process: Process, name: str) -> None:
    try:
        async with asyncio.timeout(_START_SECONDS):
            while not ready():
                if not process.alive():
                    raise DemoFailed(f"{name} ended at its start.")
                await asyncio.sleep(processes.POLL_SECONDS)
    except TimeoutError:
        raise DemoFailed(f"{name} was not ready within {_START_SECONDS:g} s.") from None


def _stop(ordered: list[Process]) -> None:
    for process in ordered:
        family = processes.family(process)
        process.send(signal.SIGTERM)
        processes.wait_gone(family, _STOP_SECONDS)
        processes.end(family)


def _words(fault: Exception) -> list[str]:
    if isinstance(fault, ExceptionGroup):
        return [word for inner in fault.exceptions for word in _words(inner)]
    return [str(fault) or type(fault).__name__]


def _tail(log: Path) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(text.splitlines()[-_LOG_LINES:]) or "(empty)"
