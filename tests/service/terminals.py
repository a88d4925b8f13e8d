"""A command on a real pseudo-terminal: what it shows, and keys for it."""

import asyncio
import codecs
import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.patience import PATIENCE_SECONDS
from tests.service.test_cli import environment

_STYLES = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """What a process has written to its terminal, without colours."""

    def __init__(self, file: int, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._file = file
        self._raw = ""
        self._seen = 0  # how far it was looked at
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._fresh = asyncio.Event()
        asyncio.get_running_loop().add_reader(file, self._read)

    @property
    def raw(self) -> str:
        """As it came."""
        return self._raw

    @property
    def shown(self) -> str:
        """As people see it."""
        return _STYLES.sub("", self._raw).replace("\r", "")

    def _read(self) -> None:
        try:
            data = os.read(self._file, 65536)
        except OSError:  # Linux says so when the last process has left
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._file)
        self._raw += self._decoder.decode(data)
        self._fresh.set()

    async def expect(self, text: str) -> str:
        """Wait until it shows `text` behind what was expected before; gives what stands before that."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (at := self.shown.find(text, self._seen)) < 0:
                    self._fresh.clear()
                    await self._fresh.wait()
        except TimeoutError:
            raise AssertionError(f"{text!r} is not in {self.shown[self._seen :]!r}") from None
        before = self.shown[self._seen : at]
        self._seen = at + len(text)
        return before

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._file, keys.encode())

    async def ended(self) -> int:
        """Wait for the end; gives the exit code."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.process.wait()


@asynccontextmanager
async def on_a_terminal(*arguments: str, **variables: str) -> AsyncIterator[Terminal]:
    """Run `imprimatur` with these arguments on a terminal of 100 by 40 inside the block."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", *arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(**variables) | {"TERM": "xterm"},
        start_new_session=True,
    )
    os.close(theirs)
    terminal = Terminal(ours, process)
    try:
        yield terminal
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        with contextlib.suppress(ValueError):
            asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
