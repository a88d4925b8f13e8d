"""A process of its own that is told what to do, one JSON object per line over a socket: both ends."""

import asyncio
import json
import socket
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from benchmarks.fleet import Fleet
from deploy.local import process as processes

_START_SECONDS = 120.0
_LONGEST_LINE = 2**24

#: Does what one object says, and returns what is answered.
Obey = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


async def obeyed(path: str, obey: Obey) -> None:
    """In that process: do what the one who connects to the socket `path` says, until it leaves."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await obey(json.loads(line))).encode() + b"\n")
        except Exception:  # noqa: BLE001  # the process's edge: it ends, and its log says why
            traceback.print_exc()
        finally:
            writer.close()
            ended.set()

    async with await asyncio.start_unix_server(serve, path, limit=_LONGEST_LINE):
        await ended.wait()


class Remote:
    """In the measuring process: one such process, a member of the fleet under `name`.

    Args:
        words: after `python`; the path of the socket is added.
    """

    def __init__(self, fleet: Fleet, name: str, words: list[str], environ: Mapping[str, str]) -> None:
        path = str(fleet.folder / f"{name}.socket")
        process = fleet.spawn(name, [*words, path], environ)
        self._log = fleet.log(name)
        self._socket = socket.socket(socket.AF_UNIX)
        if not processes.wait_until(lambda: not process.alive() or self._connected(path), _START_SECONDS):
            raise RuntimeError(f"{name} does not answer:\n{self._tail()}")
        if not process.alive():
            raise RuntimeError(f"{name} ended at its start:\n{self._tail()}")
        self._answers = self._socket.makefile("r")

    def tell(self, wanted: Mapping[str, Any]) -> None:
        """Begin something; `answer` waits for its end."""
        self._socket.sendall(json.dumps(wanted).encode() + b"\n")

    def answer(self) -> Any:
        """What came of it. Raises RuntimeError when the process ended instead."""
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"the process ended:\n{self._tail()}")
        return json.loads(line)

    def ask(self, wanted: Mapping[str, Any]) -> Any:
        """Both."""
        self.tell(wanted)
        return self.answer()

    def _connected(self, path: str) -> bool:
        try:
            self._socket.connect(path)
        except OSError:
            return False
        return True

    def _tail(self) -> str:
        return self._log.read_text()[-3000:]
