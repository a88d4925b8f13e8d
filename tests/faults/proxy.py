"""A TCP proxy that does what networks do: delays, cuts, refuses, swallows, and loses the reply to a commit.

It stands between a service and what the service needs, in the test's own process; services of other processes
reach it at 127.0.0.1 and `port`. What it is told holds at once, for present and future connections alike, and adds
up until `pass_on`. It sees bytes, not messages: with TLS no pattern is found.
"""

import asyncio
import random
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto

from deploy.local.ports import free_port

#: Closing such a socket sends RST at once, and nothing that is still unsent.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
#: A sender is made to wait when so much of its bytes is not taken by the other side.
_MOST_UNSENT_BYTES = 1 << 20
_BACKLOG = 512


class Direction(Enum):
    """Which way bytes go."""

    TO_SERVER = auto()
    TO_CLIENT = auto()


class _Signal(Enum):
    END = auto()  #: no more bytes follow (FIN)
    RESET = auto()


_BOTH = frozenset(Direction)


class Proxy:
    """What `proxying` yields. Call its methods within its event loop.

    Attributes:
        port: where clients connect, on 127.0.0.1.
        connections: accepted so far.
        passed_bytes: handed on so far, by direction.
        struck: connections reset by `cut_after` so far.
    """

    def __init__(self, host: str, port: int) -> None:
        self.server_address = (host, port)
        self.port = free_port()
        self.connections = 0
        self.passed_bytes = dict.fromkeys(Direction, 0)
        self.struck = 0
        self.delay_seconds = self.jitter_seconds = 0.0
        self.swallowed: frozenset[Direction] = frozenset()
        self.pattern = b""
        self.cuts_left = 0
        self._links: set[_Link] = set()
        self._listening = False
        self._listener = self._bind()
        self._listen()

    @property
    def open_now(self) -> int:
        """Connections of which at least one side is open."""
        return len(self._links)

    def pass_on(self) -> None:
        """Be a plain wire again. What is delayed arrives now; connections that lost bytes are cut."""
        self.delay_seconds = self.jitter_seconds = 0.0
        self.swallowed = frozenset()
        self.pattern, self.cuts_left = b"", 0
        for link in list(self._links):
            link.pass_on()
        if not self._listening:
            self._listen()

    def delay(self, seconds: float, jitter_seconds: float = 0.0) -> None:
        """Let all bytes arrive so much later, each way, plus a uniform draw from [0, jitter_seconds].

        In order and at any rate, as a long wire does: what is on its way is not bounded.
        """
        self.delay_seconds, self.jitter_seconds = seconds, jitter_seconds

    def cut(self) -> None:
        """Reset every present connection; new ones work."""
        for link in list(self._links):
            link.reset()

    def refuse(self) -> None:
        """Reset every present connection and refuse new ones, until `pass_on`."""
        if self._listening:
            self._stop_listening()
            self._listener = self._bind()  # bound but not listening, so that nobody else takes the port
        self.cut()

    def swallow(self, *directions: Direction) -> None:
        """Let all that is sent vanish, FIN and RST too; without arguments both ways.

        The senders' systems still see their bytes acknowledged. New connections are accepted.
        """
        self.swallowed = frozenset(directions) or _BOTH

    def cut_after(self, pattern: bytes, times: int = 1) -> None:
        """Lose the reply: once `pattern` was passed on to the server, reset the connection in place of passing on
        the first byte that comes back. By then the server has done what it was asked. For the next `times` finds.
        """
        self.pattern, self.cuts_left = pattern, times
        for link in self._links:
            link.tail = b""

    async def close(self) -> None:
        """Reset every connection and stop; when this returns no task or socket of it is left."""
        if self._listening:
            self._stop_listening()
        self._listener.close()
        self.cut()
        await asyncio.gather(*(link.task for link in self._links), return_exceptions=True)

    def _bind(self) -> socket.socket:
        listener = socket.socket()
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        return listener

    def _listen(self) -> None:
        self._listener.listen(_BACKLOG)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        self._listening = True

    def _stop_listening(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        self._listening = False

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # gone before we came
        accepted.setblocking(False)
        self.connections += 1
        link = _Link(self, accepted)
        self._links.add(link)
        link.task.add_done_callback(lambda _task: self._links.discard(link))


@asynccontextmanager
async def proxying(host: str, port: int) -> AsyncIterator[Proxy]:
    """A proxy before the server at `host`:`port`, passing on; closed at the end, its connections reset."""
    proxy = Proxy(host, port)
    try:
        yield proxy
    finally:
        await proxy.close()


class _Link:
    """One connection through the proxy: a socket to the client, one to the server."""

    def __init__(self, proxy: Proxy, accepted: socket.socket) -> None:
        self.proxy = proxy
        self.client = _End(self, Direction.TO_SERVER)
        self.server = _End(self, Direction.TO_CLIENT)
        self.lost_bytes = False
        self.reply_to_lose = False
        self.tail = b""  #: the end of what went to the server, in which a pattern may have begun
        self._accepted = accepted
        self._opened = False
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._open()
        except OSError:
            pass  # the server is out of reach; a proxy that has accepted can only reset
        finally:
            if not self._opened:
                self._reset_ends()
                self._accepted.close()
            await self.client.until_closed()
            await self.server.until_closed()

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self.server, *self.proxy.server_address)
        await loop.connect_accepted_socket(lambda: self.client, self._accepted)
        self._opened = True
        self.server.resume_reading()

    def reset(self) -> None:
        self._reset_ends()
        if not self._opened:
            self.task.cancel()

    def _reset_ends(self) -> None:
        if not self._opened:
            self._accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.client.reset()
        self.server.reset()

    def look_for_pattern(self, data: bytes) -> None:
        pattern, seen = self.proxy.pattern, self.tail + data
        if pattern in seen:
            self.proxy.cuts_left -= 1
            self.reply_to_lose = True
            self.tail = b""
        else:
            self.tail = seen[max(len(seen) - len(pattern) + 1, 0) :]

    def pass_on(self) -> None:
        self.reply_to_lose = False
        if self.lost_bytes:
            self.reset()
        self.client.hurry()
        self.server.hurry()


class _End(asyncio.Protocol):
    """One side of a link: what its socket receives goes, in `direction`, to the other side's."""

    def __init__(self, link: _Link, direction: Direction) -> None:
        self._link = link
        self._proxy = link.proxy
        self._direction = direction
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.Event()
        self._delayed: deque[tuple[float, bytes | _Signal]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    @property
    def _other(self) -> "_End":
        return self._link.server if self._direction is Direction.TO_SERVER else self._link.client

    # --- what asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_MOST_UNSENT_BYTES)
        if self._direction is Direction.TO_CLIENT:
            transport.pause_reading()  # until the client's side is there

    def data_received(self, data: bytes) -> None:
        if self._direction is Direction.TO_CLIENT and self._link.reply_to_lose:
            self._proxy.struck += 1
            self._link.reset()
        else:
            self._send(data)

    def eof_received(self) -> bool:
        self._send(_Signal.END)
        return True  # the other direction may go on

    def connection_lost(self, error: Exception | None) -> None:
        self._closed.set()
        if error is not None:
            self._send(_Signal.RESET)

    def pause_writing(self) -> None:
        if (source := self._other._open_transport()) is not None:
            source.pause_reading()

    def resume_writing(self) -> None:
        self._other.resume_reading()

    # --- what goes on from here

    def _send(self, what: bytes | _Signal) -> None:
        proxy = self._proxy
        if self._direction in proxy.swallowed:
            self._link.lost_bytes = True
        elif proxy.delay_seconds or proxy.jitter_seconds or self._delayed:
            self._send_later(what)
        else:
            self._hand_over(what)

    def _send_later(self, what: bytes | _Signal) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._proxy.delay_seconds + random.uniform(0, self._proxy.jitter_seconds)
        if self._delayed:
            due = max(due, self._delayed[-1][0])
        else:
            self._timer = loop.call_at(due, self._hand_over_due)
        self._delayed.append((due, what))

    def _hand_over_due(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._delayed and self._delayed[0][0] <= now:
            self._hand_over(self._delayed.popleft()[1])
        self._timer = loop.call_at(self._delayed[0][0], self._hand_over_due) if self._delayed else None

    def hurry(self) -> None:
        """Hand over what is delayed."""
        while self._delayed:
            self._hand_over(self._delayed.popleft()[1])
        self._stop_timer()

    def _hand_over(self, what: bytes | _Signal) -> None:
        sink = self._other._open_transport()
        if what is _Signal.END:
            self._ended = True
            if sink is not None:
                with suppress(OSError):  # reset by its peer, which the loop has not read yet
                    sink.write_eof()
            if self._other._ended:
                self._close()
                self._other._close()
        elif what is _Signal.RESET:
            self._link.reset()
        elif sink is not None:
            assert isinstance(what, bytes)
            self._proxy.passed_bytes[self._direction] += len(what)
            if self._direction is Direction.TO_SERVER and self._proxy.cuts_left:
                self._link.look_for_pattern(what)
            sink.write(what)

    # --- its own socket

    def _open_transport(self) -> asyncio.Transport | None:
        return None if self._transport is None or self._transport.is_closing() else self._transport

    def resume_reading(self) -> None:
        if (transport := self._open_transport()) is not None:
            transport.resume_reading()

    def _close(self) -> None:
        if (transport := self._open_transport()) is not None:
            transport.close()

    def reset(self) -> None:
        """Close it with RST, forgetting what is delayed."""
        self._delayed.clear()
        self._stop_timer()
        if self._transport is not None and not self._closed.is_set():
            plain: socket.socket = self._transport.get_extra_info("socket")
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self._transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def until_closed(self) -> None:
        """Wait until its socket is closed; at once when it never had one."""
        if self._transport is not None:
            await self._closed.wait()
