"""Keys from a terminal, one by one and without waiting for the end of a line; and lines, edited here.

The terminal is in cbreak mode inside the block: Ctrl-C is a signal as ever, and whatever happens the mode is put back.
"""

import asyncio
import codecs
import contextlib
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from cli.commands import CommandFailed
from cli.output import one_line

_ERASE = frozenset({"\x7f", "\b"})
_ENTER = frozenset({"\r", "\n"})
_ESCAPE, _KILL_LINE, _END = "\x1b", "\x15", "\x04"
#: What has so many characters typed ahead is somebody's elbow, or a paste into the wrong window.
_MOST_TYPED_AHEAD = 4096
_MOST_OF_A_LINE = 5000


class Keyboard:
    """What is typed, in order."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._typed: deque[str] = deque()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._fresh = asyncio.Event()
        self._closed = False

    def feed(self, data: bytes) -> None:
        """What the terminal gave; nothing: it is gone."""
        if not data:
            self._closed = True
        room = _MOST_TYPED_AHEAD - len(self._typed)
        self._typed.extend(self._decoder.decode(data)[: max(0, room)])
        self._fresh.set()

    async def key(self) -> str:
        """The next key. What a key sends that is none of ours, such as an arrow, is passed over; "\x04" (Ctrl-D) when
        the terminal is gone."""
        while True:
            character = await self._next()
            if character == _ESCAPE and self._typed and self._typed[0] in "[O":
                self._pass_sequence()
                continue
            return character

    async def line(self, prompt: str) -> str | None:
        """A line, typed after the prompt; None when it was given up with Esc."""
        self._write(prompt)
        typed: list[str] = []
        while True:
            key = await self.key()
            if key in _ENTER:
                self._write("\n")
                return "".join(typed)
            if key in (_ESCAPE, _END):
                self._write("\n")
                return None
            if key in _ERASE or key == _KILL_LINE:
                for _ in range(len(typed) if key == _KILL_LINE else min(1, len(typed))):
                    typed.pop()
                    self._write("\b \b")
            elif (key.isprintable() or key == "\t") and len(typed) < _MOST_OF_A_LINE:
                typed.append(" " if key == "\t" else key)
                self._write(one_line(key) or " ")

    def forget(self) -> None:
        """What was typed ahead was meant for something else."""
        self._typed.clear()

    async def _next(self) -> str:
        while not self._typed:
            if self._closed:
                return _END
            self._fresh.clear()
            await self._fresh.wait()
        return self._typed.popleft()

    def _pass_sequence(self) -> None:
        """A control sequence ends with a letter or a tilde."""
        self._typed.popleft()
        while self._typed:
            if "@" <= self._typed.popleft() <= "~":
                return


@asynccontextmanager
async def keyboard(write: Callable[[str], None]) -> AsyncIterator[Keyboard]:
    """The terminal of this process, key by key, inside the block.

    Raises:
        CommandFailed: there is none.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandFailed("this needs a terminal; 'imprimatur review --help' lists the commands for scripts")
    try:
        import termios
        import tty
    except ImportError:
        raise CommandFailed("this needs a POSIX terminal; use 'imprimatur review next' and 'decide'") from None
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    keys = Keyboard(write)

    def read() -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = os.read(file, 1024)
        keys.feed(data)
        if not data:
            loop.remove_reader(file)

    loop = asyncio.get_running_loop()
    tty.setcbreak(file)
    loop.add_reader(file, read)
    try:
        yield keys
    finally:
        loop.remove_reader(file)
        with contextlib.suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(file, termios.TCSADRAIN, before)
