"""Traces: in which one the present work stands, and spans around pieces of it.

This is the face that all other code uses, and it knows nothing of OpenTelemetry. Recording and sending is
`tracing.otlp`, imported only inside `exporting` with an endpoint. Without one no span is made; the context that a
caller sent still goes into the job and into log lines.

Attributes are ids, names from our own lists, numbers and codes. Never anything of a creative, a text of a person,
model or error, a whole URL, a key. What each span has is told in docs/tracing.md.
"""

import re
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Protocol, Self

Attribute = str | int | float | bool
Attributes = Mapping[str, Attribute]

TRACEPARENT_HEADER, TRACESTATE_HEADER = "traceparent", "tracestate"
_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?P<span>(?!0{16})[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.{0,200})?"
)
#: Sampled, and that the trace id is random; the other bits mean nothing yet, and such are not passed on.
_KNOWN_FLAGS = 0b11
_LONGEST_TRACESTATE = 512


class Kind(StrEnum):
    """What a span is to its trace."""

    INTERNAL = "internal"
    SERVER = "server"  #: answers a call
    CLIENT = "client"  #: makes one
    CONSUMER = "consumer"  #: does what was asked for earlier


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanContext:
    """One span of one trace, as W3C Trace Context (https://www.w3.org/TR/trace-context/) names it."""

    trace_id: str  #: 32 hexadecimal digits
    span_id: str  #: 16 hexadecimal digits
    flags: int
    tracestate: str = ""  #: what tracing systems add for each other; for the next span only, no job keeps it

    @classmethod
    def read(cls, traceparent: str | None, tracestate: str = "") -> "SpanContext | None":
        """None for what is missing or malformed: a bad header fails no call."""
        found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
        if found is None or (found["version"] == "00" and found["more"]):
            return None
        return cls(
            trace_id=found["trace"],
            span_id=found["span"],
            flags=int(found["flags"], 16) & _KNOWN_FLAGS,
            tracestate=tracestate if len(tracestate) <= _LONGEST_TRACESTATE else "",
        )

    @property
    def traceparent(self) -> str:
        """As the header of that name has it."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


class Span:
    """A piece of work while it is done: `with span("review") as review: ...`; inside, it is the current one.

    This one is not recorded: it only stands for where in a trace the work is.
    """

    recording = False  #: whether attributes are kept; worth asking before they are put together

    def __init__(self, context: SpanContext | None) -> None:
        self.context = context
        self._outer: Span = NOTHING

    def __enter__(self) -> Self:
        self._outer = _current.get()
        _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.set(self._outer)  # not by a token: a stream may be closed in a context other than it was opened in

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""

    def fail(self, error_type: str) -> None:
        """Say that the work failed, by a code or the name of a class; never by a message. The last word counts."""

    def link(self, other: SpanContext | None) -> None:
        """Point at a span of another trace."""


class _Nothing(Span):
    """Outside any trace; everywhere the same one."""

    def __init__(self) -> None:
        self.context = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Recorder(Protocol):
    """What makes spans that are recorded."""

    def open(
        self, name: str, kind: Kind, parent: SpanContext | None, attributes: Attributes | None, *, remote: bool
    ) -> Span:
        """A span that begins now. `remote`: the parent is one of another process, or of an earlier time."""
        ...


NOTHING: Span = _Nothing()
_current: ContextVar[Span] = ContextVar("current span", default=NOTHING)
_recorder: Recorder | None = None


def span(name: str, attributes: Attributes | None = None, *, kind: Kind = Kind.INTERNAL) -> Span:
    """A span inside the current one."""
    if _recorder is None:
        return NOTHING
    return _recorder.open(name, kind, _current.get().context, attributes, remote=False)


def continued(
    name: str, parent: SpanContext | None, attributes: Attributes | None = None, *, kind: Kind = Kind.INTERNAL
) -> Span:
    """The first span of this process in a trace that began elsewhere; without a parent, of a new trace."""
    if _recorder is not None:
        return _recorder.open(name, kind, parent, attributes, remote=True)
    return NOTHING if parent is None else Span(parent)


def current() -> Span:
    """The innermost span that is open here."""
    return _current.get()


def traceparent() -> str | None:
    """The current span, to be kept for later work; None outside any trace."""
    context = _current.get().context
    return None if context is None else context.traceparent


def add_ids(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: says in each line where in a trace it was written. Costs nothing until one is."""
    context = _current.get().context
    if context is not None:
        line["trace_id"], line["span_id"] = context.trace_id, context.span_id
    return line


@asynccontextmanager
async def exporting(
    endpoint: str | None, *, service: str, instance: str, sample_ratio: float = 1.0
) -> AsyncIterator[None]:
    """Record spans inside the block and send them to `endpoint` (OTLP/HTTP); without one, do neither.

    Args:
        sample_ratio: of the traces that begin here; a caller's own decision holds.

    Raises:
        ConfigurationError: a variable of OpenTelemetry's own has a value that cannot be used.
    """
    global _recorder  # noqa: PLW0603  # one to a process, like the registry of metrics
    if not endpoint:
        yield
        return
    from imprimatur.tracing.otlp import OtlpRecorder

    recorder = OtlpRecorder(endpoint, service=service, instance=instance, sample_ratio=sample_ratio)
    _recorder = recorder
    try:
        yield
    finally:
        _recorder = None
        await recorder.close()
