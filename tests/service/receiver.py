"""A real HTTP server that takes webhooks, remembers them, and answers as it is told."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from standardwebhooks.webhooks import Webhook

from tests.service.listening import listening

Answer = Callable[["Post"], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, kw_only=True)
class Post:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def id(self) -> str:
        """The webhook-id."""
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> Any:
        """The content, as the public package verifies it."""
        return Webhook(secret).verify(self.body, dict(self.headers))


class Receiver:
    """Answers 204 unless `answer` says otherwise."""

    def __init__(self) -> None:
        self.posts: list[Post] = []
        self.port = 0
        self.answer: Answer = with_status(204)

    def url(self, path: str = "/hook") -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}{path}"

    def at(self, path: str) -> list[Post]:
        """What came to one path."""
        return [post for post in self.posts if post.path == path]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Remember and answer."""
        post = Post(path=request.path, headers=dict(request.headers), body=await request.read())
        self.posts.append(post)
        return await self.answer(post)


def with_status(*statuses: int, **headers: str) -> Answer:
    """Each answer has the next of these statuses, and the last for ever."""
    left = list(statuses)

    async def answer(_post: Post) -> web.StreamResponse:
        status = left.pop(0) if len(left) > 1 else left[0]
        return web.Response(status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return answer


def never() -> Answer:
    """No answer while the connection stands."""

    async def answer(_post: Post) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    return answer


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver on a free port of 127.0.0.1."""
    made = Receiver()
    async with listening(made.handle) as made.port:
        yield made
