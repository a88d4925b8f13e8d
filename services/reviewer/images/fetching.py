"""Fetches images from URLs that tenants name, by the guard, and no more of them than is allowed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from aiohttp import ClientError, ClientResponse

from imprimatur import metrics
from imprimatur.errors import AttemptError, TransientError, UnreviewableInput
from imprimatur.guard import Guard, GuardedClient, UrlForbidden, as_forbidden, in_words
from reviewer.images.decoding import STAGE

UNAVAILABLE = "image_unavailable"  #: the error code of an attempt whose image could not be fetched this time
_CHUNK_BYTES = 64 * 1024
_HEADERS = {"Accept": "image/png, image/jpeg, image/gif, image/webp", "User-Agent": "Imprimatur-Images/1"}
#: Refusals that may pass; others are the creative's to mend.
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


class Remaining:
    """The bytes that the images of one creative may still have, of which all take as they come."""

    def __init__(self, size: int) -> None:
        self._size = self._left = size

    def take(self, number: int, field: str) -> None:
        """So many of them.

        Raises:
            UnreviewableInput: so many are not left.
        """
        self.require(number, field)
        self._left -= number

    def require(self, number: int, field: str) -> None:
        """Make sure that so many are left; raises as `take`."""
        if number > self._left:
            raise _refusal(field, f"is too much: a creative's images have {self._size:,} bytes at most")


class Fetcher:
    """Fetches. Make it inside the event loop that uses it.

    Args:
        timeout_seconds: the longest that one image may take.
    """

    def __init__(self, guard: Guard, *, timeout_seconds: float = 20.0) -> None:
        self._client = GuardedClient(guard, timeout_seconds=timeout_seconds, headers=_HEADERS)
        self._timeout_seconds = timeout_seconds

    async def fetch(self, url: str, field: str, remaining: Remaining, *, most_bytes: int) -> bytes:
        """The image at `url`, `field` being its place, such as "images[0]"; its bytes are taken of what remains.

        Raises:
            UnreviewableInput: it must not be fetched, is not there, or is too large.
            TransientError: it could not be fetched now (`image_unavailable`).
        """
        with _counted():
            return await self._fetch(url, field, remaining, most_bytes)

    async def _fetch(self, url: str, field: str, remaining: Remaining, most_bytes: int) -> bytes:
        try:
            async with self._client.request("GET", url) as response:
                _check(response, field, most_bytes)
                remaining.require(response.content_length or 0, field)
                return await _read(response, field, remaining, most_bytes)
        except UrlForbidden as forbidden:
            raise _refusal(field, str(forbidden)) from None
        except TimeoutError:
            raise _unavailable(field, f"took longer than {self._timeout_seconds:g} s to fetch") from None
        except (ClientError, OSError, ValueError) as fault:
            raise _explained(fault, field) from fault

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()


def _check(response: ClientResponse, field: str, most_bytes: int) -> None:
    status = response.status
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING:
        raise _unavailable(field, f"cannot be fetched: HTTP {status}")
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        raise _refusal(field, f"cannot be fetched: HTTP {status}, and redirects are not followed")
    if status != HTTPStatus.OK:
        raise _refusal(field, f"cannot be fetched: HTTP {status}")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _refusal(field, "comes compressed, which was not asked for")
    if (response.content_length or 0) > most_bytes:
        raise _too_large(field, most_bytes)


@contextmanager
def _counted() -> Iterator[None]:
    """One fetch: how long it took, and how it ended. What is broken off is not counted."""
    began = time.perf_counter()

    def count(outcome: str) -> None:
        metrics.image_fetch_seconds.labels(outcome).observe(time.perf_counter() - began)

    try:
        yield
    except AttemptError as error:
        count("unavailable" if isinstance(error, TransientError) else "refused")
        raise
    count("fetched")


async def _read(response: ClientResponse, field: str, remaining: Remaining, most_bytes: int) -> bytes:
    """The whole answer: what it said of its length may not be true."""
    content = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        if len(content) + len(chunk) > most_bytes:
            raise _too_large(field, most_bytes)
        remaining.take(len(chunk), field)
        content += chunk
    return bytes(content)


def _explained(fault: Exception, field: str) -> AttemptError:
    if forbidden := as_forbidden(fault):
        return _refusal(field, str(forbidden))
    return _unavailable(field, f"cannot be fetched: {in_words(fault)}")


def _refusal(field: str, message: str) -> UnreviewableInput:
    return UnreviewableInput(f"{field}: {message}", stage=STAGE)


def _too_large(field: str, most_bytes: int) -> UnreviewableInput:
    return _refusal(field, f"is larger than the {most_bytes:,} bytes that are allowed")


def _unavailable(field: str, message: str) -> TransientError:
    return TransientError(f"{field}: {message}", code=UNAVAILABLE, stage=STAGE)
