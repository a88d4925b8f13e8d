"""Spans that are recorded, and sent by OTLP over HTTP: the one place that knows OpenTelemetry's SDK.

Nothing here may hurt a job. A finished span is put into a bounded queue, which a thread of its own empties; what finds
no room, or no collector that takes it, is dropped and counted. The tracer is never made the process's global one, so
that no library that also traces sends contents along.

Headers, certificates, compression and time-out of the collector are the exporter's standard variables
(OTEL_EXPORTER_OTLP_HEADERS and so on).
"""

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from types import TracebackType

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, StatusCode, TraceFlags, TraceState

from imprimatur import metrics
from imprimatur.errors import ConfigurationError
from imprimatur.tracing import Attributes, Kind, Span, SpanContext

log = structlog.get_logger(__name__)

#: Finished spans on their way at most: some 10 MB.
_MOST_WAITING = 4096
_MOST_TOGETHER = 512
_TOGETHER_MS = 1000.0
#: How long a process that stops goes on sending.
_LAST_SECONDS = 2.0
_PATH = "/v1/traces"
_NO_PARENT = Context()
_KINDS = {kind: trace.SpanKind[kind.name] for kind in Kind}


class OtlpRecorder:
    """Records spans and sends them to `endpoint`, with or without the path of OTLP/HTTP.

    Raises:
        ConfigurationError: a variable of OpenTelemetry's own has a value that cannot be used.
    """

    def __init__(self, endpoint: str, *, service: str, instance: str, sample_ratio: float) -> None:
        self._complaints = _Complaints()
        url = endpoint.rstrip("/")
        self._sender = _Sender(OTLPSpanExporter(endpoint=url if url.endswith(_PATH) else url + _PATH), self._complaints)
        resource = {"service.name": service, "service.version": version("imprimatur"), "service.instance.id": instance}
        try:
            self._provider = TracerProvider(
                sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
                resource=Resource.create(resource),
                shutdown_on_exit=False,
            )
        except ValueError as fault:
            raise ConfigurationError(f"a variable of OpenTelemetry's cannot be used: {fault}") from fault
        self._provider.add_span_processor(_Queue(self._sender))
        self._tracer = self._provider.get_tracer("imprimatur", version("imprimatur"))

    def open(
        self, name: str, kind: Kind, parent: SpanContext | None, attributes: Attributes | None, *, remote: bool
    ) -> Span:
        """As `tracing.Recorder`."""
        around = _NO_PARENT if parent is None else _around(parent, remote=remote)
        return _RecordedSpan(self._tracer.start_span(name, around, _KINDS[kind], attributes), kind)

    async def close(self) -> None:
        """Send what waits, for a short time at most; the event loop goes on meanwhile."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # nobody waited so long, and the loop is closed
                loop.call_soon_threadsafe(sent.set)

        # Not by the loop's own threads: their end would be waited for.
        threading.Thread(target=send, name="last-spans", daemon=True).start()
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await sent.wait()
        except TimeoutError:
            log.warning("the last spans could not be sent in time", reason=self._complaints.latest)
        finally:
            self._complaints.leave()
            self._sender.shutdown()


class _RecordedSpan(Span):
    """One that OpenTelemetry keeps, unless its trace is not sampled."""

    def __init__(self, kept: trace.Span, kind: Kind) -> None:
        its = kept.get_span_context()
        super().__init__(_ours(its) if its.is_valid else None)  # it is not where OTEL_SDK_DISABLED is set
        self._kept = kept
        self._kind = kind
        self.recording = kept.is_recording()

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, fault, trace)
        if fault is not None and self._kind is not Kind.SERVER:  # whose caller gets a status, and it decides
            self.fail(_type_of(fault))
        self._kept.end()

    def set(self, attributes: Attributes) -> None:
        self._kept.set_attributes(attributes)

    def fail(self, error_type: str) -> None:
        self._kept.set_attribute("error.type", error_type)
        self._kept.set_status(StatusCode.ERROR, error_type)

    def link(self, other: SpanContext | None) -> None:
        if other is not None:
            self._kept.add_link(_otel(other, remote=True))


def _type_of(fault: BaseException) -> str:
    code = getattr(fault, "code", None)
    if isinstance(code, str):
        return code
    return "cancelled" if isinstance(fault, asyncio.CancelledError) else type(fault).__name__


def _ours(context: trace.SpanContext) -> SpanContext:
    return SpanContext(
        trace_id=f"{context.trace_id:032x}", span_id=f"{context.span_id:016x}", flags=int(context.trace_flags)
    )


def _around(parent: SpanContext, *, remote: bool) -> Context:
    return trace.set_span_in_context(NonRecordingSpan(_otel(parent, remote=remote)), _NO_PARENT)


def _otel(context: SpanContext, *, remote: bool) -> trace.SpanContext:
    return trace.SpanContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        is_remote=remote,
        trace_flags=TraceFlags(context.flags),
        trace_state=TraceState.from_header([context.tracestate]) if context.tracestate else None,
    )


class _Queue(SpanProcessor):
    """Hands finished spans to the sender in batches, unless too many are on their way."""

    def __init__(self, sender: "_Sender") -> None:
        self._sender = sender
        self._accepted = 0
        self._batches = BatchSpanProcessor(
            sender,
            max_queue_size=_MOST_WAITING,
            schedule_delay_millis=_TOGETHER_MS,
            max_export_batch_size=_MOST_TOGETHER,
        )

    def on_end(self, span: ReadableSpan) -> None:
        if self._accepted - self._sender.done >= _MOST_WAITING:  # each counter is written by one thread alone
            metrics.spans_dropped.labels("queue_full").inc()
            return
        self._accepted += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        self._batches.shutdown()  # type: ignore[no-untyped-call]  # the SDK leaves it without types


class _Sender(SpanExporter):
    """Counts what the exporter could not send, and tells of it once, not once a batch."""

    def __init__(self, exporter: OTLPSpanExporter, complaints: "_Complaints") -> None:
        self._exporter = exporter
        self._complaints = complaints
        self._failing = False
        self._shut = threading.Event()
        self.done = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE if self._shut.is_set() else self._exporter.export(spans)
        self.done += len(spans)
        if result is SpanExportResult.SUCCESS:
            if self._failing:
                log.info("spans are sent again")
        else:
            metrics.spans_dropped.labels("not_sent").inc(len(spans))
            if not self._failing and not self._shut.is_set():
                log.warning("spans cannot be sent; they are dropped meanwhile", reason=self._complaints.latest)
        self._failing = result is not SpanExportResult.SUCCESS
        return result

    def shutdown(self) -> None:
        if not self._shut.is_set():
            self._shut.set()
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # as above

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002  # the face of an exporter
        return True


class _Complaints(logging.Handler):
    """Takes what OpenTelemetry logs: the exporter complains of each batch, and of bad headers by quoting them.

    The exporter's latest reason is kept for our own line. Of anything else the words are passed on without their
    arguments, once.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.latest = ""
        self._told: set[str] = set()
        self._logger = logging.getLogger("opentelemetry")
        self._logger.addHandler(self)
        self._logger.setLevel(logging.WARNING)
        self._logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("opentelemetry.exporter."):
            self.latest = record.getMessage()
        elif str(record.msg) not in self._told:
            self._told.add(str(record.msg))
            log.warning("OpenTelemetry complains", words=str(record.msg))

    def leave(self) -> None:
        """Take no more; the thread that may still be at it is not listened to."""
        self._logger.setLevel(logging.CRITICAL)
        self._logger.removeHandler(self)
