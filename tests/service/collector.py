"""A collector of traces on a real socket: takes OTLP over HTTP, reads it by the standard's own messages."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.contract.polling import eventually
from tests.service.listening import listening

Value = str | int | float | bool
Answer = Callable[[], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One span as it came."""

    name: str
    kind: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str  #: empty: it begins a trace
    error: str  #: empty: none is marked
    attributes: dict[str, Value]
    links: list[tuple[str, str]]  #: trace and span id

    @property
    def traceparent(self) -> str:
        """As the next one is told of it."""
        return f"00-{self.trace_id}-{self.span_id}"


@dataclass
class Collector:
    """Answers 200 unless `answer` says otherwise; what it refuses it does not keep."""

    port: int = 0
    spans: list[Seen] = field(default_factory=list)
    raw: bytes = b""
    requests: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    answer: Answer | None = None

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def named(self, name: str) -> list[Seen]:
        """The spans of that name, in the order in which they came."""
        return [span for span in self.spans if span.name == name]

    async def until(self, *names: str) -> list[Seen]:
        """One span of each name, once they are all there; a name may come several times."""

        def there() -> bool:
            return all(len(self.named(name)) >= names.count(name) for name in names)

        await eventually(there, f"{names}, not only {[span.name for span in self.spans]}")
        left = {name: self.named(name) for name in names}
        return [left[name].pop(0) for name in names]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Read and answer."""
        assert request.path == "/v1/traces"
        body = await request.read()
        self.requests += 1
        self.headers = dict(request.headers)
        if self.answer is not None:
            return await self.answer()
        self.raw += body
        for of_service in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = str(_values(of_service.resource.attributes)["service.name"])
            for scope in of_service.scope_spans:
                self.spans += [_seen(span, service) for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")


def frozen() -> Answer:
    """No answer while the connection stands."""

    async def answer() -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    return answer


def refusing(status: int) -> Answer:
    """Each time this status."""

    async def answer() -> web.StreamResponse:
        return web.Response(status=status)

    return answer


def _seen(span: trace_pb2.Span, service: str) -> Seen:
    failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    return Seen(
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        service=service,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        error=span.status.message if failed else "",
        attributes=_values(span.attributes),
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
    )


def _values(attributes: Iterable[KeyValue]) -> dict[str, Value]:
    return {item.key: _value(item.value) for item in attributes}


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    assert kind is not None
    found: Value = getattr(value, kind)
    return found


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector on a free port of 127.0.0.1."""
    made = Collector()
    async with listening(made.handle) as made.port:
        yield made
