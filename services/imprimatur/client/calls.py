"""How a call is made: with the key, a deadline, the trace, and again where that is safe. Which there are: `client`."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from google.protobuf.message import Message
from grpc import aio

from imprimatur.client import traces
from imprimatur.client.errors import ClientError
from imprimatur.retry import Backoff

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

#: Between tries.
BACKOFF = Backoff(first_seconds=0.2, cap_seconds=5.0)
#: What one try of an upload may take, which depends on the line more than on the server.
UPLOAD_SECONDS = 120.0
#: A stream that stood so long was up, even if it had nothing to tell; longer than gRPC tries to connect (20 s).
HELD_SECONDS = 25.0


class Patience:
    """How long a failing server is asked again; a sign of life renews it. Times are seconds of a monotonic clock.

    Args:
        seconds: from the first failure to giving up; None never gives up.
    """

    def __init__(self, seconds: float | None, *, now: float) -> None:
        self._seconds = seconds
        self._failing_since = now
        self.renew(now)

    def renew(self, now: float) -> None:
        """The server answered."""
        self._failures = 0
        self._began = now

    def begin(self, now: float) -> None:
        """The next try begins."""
        self._began = now

    def pause_after(self, error: ClientError, *, now: float, jitter: float) -> float:
        """Seconds until the next try; raises `error` when it is permanent or the patience is at its end."""
        if self._failures == 0 or now - self._began >= HELD_SECONDS:
            self._failures = 0
            self._failing_since = now
        self._failures += 1
        pause = BACKOFF.seconds(self._failures, jitter)
        if error.throttled:  # all who were refused together are told the same: they come again spread out
            asked = error.retry_after_seconds or 0.0
            pause = asked + max(pause, jitter * asked)
        at_its_end = self._seconds is not None and now + pause - self._failing_since >= self._seconds
        if at_its_end or not error.passing:
            raise error
        return pause

    async def wait(self, error: ClientError) -> None:
        """Let the pause pass; raises as `pause_after`."""
        pause = self.pause_after(error, now=time.monotonic(), jitter=random.random())  # noqa: S311 - no secret
        await asyncio.sleep(pause)
        self.begin(time.monotonic())


class Calls:
    """Makes calls as the holder of one key.

    Args:
        deadline_seconds: how long a unary call may take, all tries together.
        retry_seconds: how long a call that may be repeated is.

    Raises:
        ValueError: the key cannot be one. The key itself is in no message.
    """

    def __init__(self, api_key: str, *, deadline_seconds: float, retry_seconds: float) -> None:
        if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            raise ValueError("api_key: must be printable ASCII without spaces, as it was issued")
        self._authorization = ("authorization", f"Bearer {api_key}")
        self._deadline_seconds = deadline_seconds
        self._retry_seconds = retry_seconds

    def patience(self) -> Patience:
        """For a call that may be repeated."""
        return Patience(self._retry_seconds, now=time.monotonic())

    async def unary(
        self,
        method: "aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        repeatable: bool,
    ) -> Response:
        """The answer to `request`.

        Args:
            repeatable: the call may be made twice without doing anything twice; it is then made again while
                the server is away.

        Raises:
            ClientError: it was refused, or no answer came.
        """
        began = time.monotonic()
        patience = Patience(self._retry_seconds if repeatable else 0.0, now=began)
        while True:
            remaining = max(0.0, began + self._deadline_seconds - time.monotonic())
            try:
                return await method(request, timeout=remaining, metadata=self._metadata())
            except aio.AioRpcError as error:
                failure = ClientError.of(error)
                failure.__cause__ = error
            await patience.wait(failure)

    async def upload(
        self, method: "aio.StreamUnaryMultiCallable[Request, Response]", parts: Callable[[], AsyncIterator[Request]]
    ) -> Response:
        """The answer to a stream of requests, which is sent anew while the server is away.

        Raises:
            ClientError: it was refused, or no answer came.
        """
        patience = self.patience()
        while True:
            try:
                return await method(parts(), timeout=UPLOAD_SECONDS, metadata=self._metadata())
            except aio.AioRpcError as error:
                failure = ClientError.of(error)
                failure.__cause__ = error
            await patience.wait(failure)

    @contextmanager
    def stream(
        self, method: "aio.UnaryStreamMultiCallable[Request, Response]", request: Request
    ) -> "Iterator[aio.UnaryStreamCall[Request, Response]]":
        """An open stream, without a deadline; cancelled when the block is left.

        Raises:
            ClientError: inside the block, when the stream breaks.
        """
        call = method(request, metadata=self._metadata())
        try:
            yield call
        except aio.AioRpcError as error:
            raise ClientError.of(error) from error
        finally:
            call.cancel()

    def _metadata(self) -> aio.Metadata:
        return aio.Metadata(self._authorization, *traces.headers())
