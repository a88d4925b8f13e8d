"""An OpenAI-compatible server that follows a script, on a real socket. It knows nothing of the engine's own code."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from imprimatur.evidence import Category

#: What every completion says it used.
INPUT_TOKENS, OUTPUT_TOKENS = 1000, 100

JSON = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request as it came."""

    headers: dict[str, str]
    body: JSON

    @property
    def shown(self) -> list[JSON]:
        """The content parts of the first message that is the user's."""
        content = next(message["content"] for message in self.body["messages"] if message["role"] == "user")
        return content if isinstance(content, list) else [{"type": "text", "text": content}]

    @property
    def creative(self) -> Any:
        """The creative as it stands between the marks."""
        return self._marked("creative")

    @property
    def criteria(self) -> Any:
        """The tenant's criteria as they stand between theirs; None when there are none."""
        return self._marked("criteria")

    def _marked(self, what: str) -> Any:
        for part in self.shown:
            first, *document, _ = part.get("text", "\n").split("\n")
            if first.startswith(f"BEGIN {what} "):
                return json.loads("\n".join(document))
        return None


@dataclass
class Provider:
    """Answers the first call by the first step, and so on; the last step answers all further calls."""

    steps: list["Step"] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)  #: a call has come
    left: asyncio.Event = field(default_factory=asyncio.Event)  #: the caller's socket closed before its answer
    released: asyncio.Event = field(default_factory=asyncio.Event)  #: `slow` answers may go out
    port: int = 0

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/v1"

    def follow(self, *steps: "Step") -> None:
        """The script from here on."""
        self.steps, self.calls = list(steps), []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Remember and play."""
        try:
            self.calls.append(Call(headers=dict(request.headers), body=await request.json()))
            self.asked.set()
            return await self.steps[min(len(self.calls), len(self.steps)) - 1](self, request)
        except asyncio.CancelledError:  # aiohttp's, when the socket closes
            self.left.set()
            raise


Step = Callable[[Provider, web.Request], Awaitable[web.StreamResponse]]


def answer(**changes: Any) -> JSON:
    """A good answer about a harmless creative, save for `changes`."""
    good: JSON = {
        "reason": "A plain offer.",
        "categories": {category.value: 0.01 for category in Category},
        "findings": [],
        "approval_score": 0.97,
        "recommendation": "approve",
    }
    return good | changes


def judged(*scores: float) -> JSON:
    """What an answer says of criteria, one after the other."""
    return {
        f"criterion_{number}": {"score": score, "explanation": "As it stands there."}
        for number, score in enumerate(scores, start=1)
    }


def gives(found: JSON, *, model: str = "scripted") -> Step:
    """An answer of the right form."""
    return says(json.dumps(found), model=model)


def says(text: str, *, finish_reason: str = "stop", refusal: str | None = None, model: str = "scripted") -> Step:
    """Whatever text in a proper completion."""

    async def play(_provider: Provider, _request: web.Request) -> web.StreamResponse:
        return web.json_response(_completion(text, finish_reason=finish_reason, refusal=refusal, model=model))

    return play


def fails(status: int, code: str = "", message: str = "as the script says", **headers: str) -> Step:
    """An error as OpenAI words it. Underscores in names of headers become hyphens."""
    body = {"error": {"message": message, "type": "an_error", "param": None, "code": code or None}}

    async def play(_provider: Provider, _request: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(body, status=status, headers=named)

    return play


def slow(then: Step) -> Step:
    """Nothing until `released`, then what is given."""

    async def play(provider: Provider, request: web.Request) -> web.StreamResponse:
        await provider.released.wait()
        return await then(provider, request)

    return play


async def hangs(_provider: Provider, _request: web.Request) -> web.StreamResponse:
    """No answer while the socket stands."""
    await asyncio.Event().wait()
    raise AssertionError


async def drips(_provider: Provider, request: web.Request) -> web.StreamResponse:
    """White space without end, as proxies send to keep a connection alive."""
    response = await _begun(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.01)


async def breaks_off(_provider: Provider, request: web.Request) -> web.StreamResponse:
    """Half an answer, then the connection is gone."""
    response = await _begun(request, content_length=1000)
    await response.write(b'{"id": "half')
    assert request.transport is not None
    request.transport.close()
    return response


async def babbles(_provider: Provider, _request: web.Request) -> web.StreamResponse:
    """A 200 that is no JSON."""
    return web.Response(text="<html>Bad gateway</html>", content_type="application/json")


def _completion(text: str, *, finish_reason: str, refusal: str | None, model: str) -> JSON:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {
            "prompt_tokens": INPUT_TOKENS,
            "completion_tokens": OUTPUT_TOKENS,
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        },
    }


async def _begun(request: web.Request, *, content_length: int | None = None) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/json"})
    response.content_length = content_length
    await response.prepare(request)
    return response


@asynccontextmanager
async def providing(*steps: Step, port: int = 0) -> AsyncIterator[Provider]:
    """A provider inside the block, at a port of its own or at that one."""
    provider = Provider(steps=list(steps))
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/chat/completions", provider.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    provider.port = runner.addresses[0][1]
    try:
        yield provider
    finally:
        await runner.cleanup()
