"""What every service process does the same way: logs, signals, background loops, and its HTTP port.

The HTTP port serves /metrics (Prometheus), /livez (the process answers; depends on nothing else) and /readyz
(everything is up and every check passes; what fails is named). It is the first thing that opens and the last that
closes.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import structlog
import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from structlog.typing import Processor

from imprimatur import metrics, tracing
from imprimatur.errors import ConfigurationError, Unavailable

log = structlog.get_logger(__name__)

#: When Python's collector of cycles looks. By default after each 700 new objects; with ten thousand streams open that
#: goes through very many living ones again and again.
_COLLECTOR_THRESHOLDS = (100_000, 50, 100)

#: A check returns nothing when all is well, or one sentence that says what is not.
Check = Callable[[], Awaitable[str | None]]
#: Sets the gauges that are read when they are scraped. It must not fail, nor take long.
Observe = Callable[[], Awaitable[None]]

_STARTING = {"starting": "not everything is up yet"}
_STOPPING = {"stopping": "nothing more is taken on, and what is under way is finished"}


def configure_logging(*, level: str = "info", json: bool | None = None) -> None:
    """Sentences plus fields on standard error: JSON for machines, columns on a terminal. What libraries report by
    Python's own logging and warnings is written alike.

    Args:
        json: None chooses by whether standard error is a terminal.
    """
    as_json = not sys.stderr.isatty() if json is None else json
    renderer = (
        structlog.processors.JSONRenderer(sort_keys=True)
        if as_json
        else structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)  # locals hold secrets
    )
    fields: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        tracing.add_ids,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        *([structlog.processors.format_exc_info] if as_json else []),
    ]
    structlog.configure(
        processors=[*fields, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    others = logging.StreamHandler(sys.stderr)
    others.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *fields],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[others], force=True)
    logging.captureWarnings(True)
    for chatty in ("aiormq", "aio_pika"):  # what they report with traces, the broker's adapter reports in a line
        logging.getLogger(chatty).setLevel(logging.CRITICAL)


class StopSignal:
    """SIGTERM or SIGINT, heeded from the first moment on: a start under way is given up, and unwinds in order."""

    def __init__(self) -> None:
        self._starting = asyncio.current_task()
        self._received = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._receive)

    @property
    def received(self) -> bool:
        """Whether it has come."""
        return self._received.is_set()

    async def wait(self) -> None:
        """Return once it comes; from here on everything has started and is left in the usual way."""
        self._starting = None
        await self._received.wait()

    def _receive(self) -> None:
        self._received.set()
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None


def run_until_signalled(service: Callable[[StopSignal], Coroutine[None, None, None]]) -> None:
    """Run `service`, which starts what it has, waits for the signal, and stops what it started."""

    async def run() -> None:
        stop = StopSignal()
        try:
            await service(stop)
        except asyncio.CancelledError:
            if not stop.received:
                raise

    gc.set_threshold(*_COLLECTOR_THRESHOLDS)
    uvloop.run(run())


class Loop:
    """A step that is done again and again until stopped; the one place where a background failure ends.

    A failing step is logged and counted, and done again after the usual interval. A step may return the seconds
    until the next one, where it differs from the usual.
    """

    def __init__(self, name: str, step: Callable[[], Awaitable[float | None]], *, interval_seconds: float) -> None:
        self._name = name
        self._step = step
        self._interval_seconds = interval_seconds
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        metrics.loop_failures.labels(name)  # there from the first scrape on

    def start(self) -> None:
        """Begin, with the first step at once."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    def wake(self) -> None:
        """Do the next step now."""
        self._woken.set()

    async def stop(self) -> None:
        """Stop, in the middle of a step if need be."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            pause = None
            try:
                pause = await self._step()
            except (Unavailable, TimeoutError) as fault:  # told once a second and more: a line is enough
                metrics.loop_failures.labels(self._name).inc()
                reason = str(fault) or "it took too long"
                log.warning(
                    "a background step could not be done now and will be tried again", loop=self._name, reason=reason
                )
            except Exception:
                metrics.loop_failures.labels(self._name).inc()
                log.exception("a background step failed and will be tried again", loop=self._name)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_seconds if pause is None else pause):
                    await self._woken.wait()


class HttpPort:
    """What a process tells of itself: that it lives and what it counts at any time, and whether it is ready."""

    def __init__(self) -> None:
        self.number = 0
        self._hindrance: Mapping[str, str] = _STARTING
        self._checks: Mapping[str, Check] = {}
        self._observers: tuple[Observe, ...] = ()

    @contextmanager
    def telling(self, checks: Mapping[str, Check], *observers: Observe) -> Iterator[None]:
        """Inside the block these are asked as well, whether the process is ready or not."""
        before = self._checks, self._observers
        self._checks, self._observers = {**self._checks, **checks}, (*self._observers, *observers)
        try:
            yield
        finally:
            self._checks, self._observers = before

    @asynccontextmanager
    async def ready(self, checks: Mapping[str, Check], *observers: Observe) -> AsyncIterator[None]:
        """Everything is up: inside the block ready while every check passes. At its end stopping begins."""
        with self.telling(checks, *observers):
            self._hindrance = {}
            try:
                yield
            finally:
                self._hindrance = _STOPPING

    async def failing(self) -> dict[str, str]:
        """What keeps the process from being ready, with what there is to say of it."""
        checks = self._checks
        answers = await asyncio.gather(*(check() for check in checks.values()))
        return {**self._hindrance, **{name: said for name, said in zip(checks, answers, strict=True) if said}}

    async def observe(self) -> None:
        """Bring the gauges up to date."""
        for observe in self._observers:
            await observe()


@asynccontextmanager
async def http_port(host: str, number: int) -> AsyncIterator[HttpPort]:
    """Serve /metrics, /livez and /readyz inside the block; `number` 0 takes a free port."""
    port = HttpPort()

    async def scrape(_request: web.Request) -> web.Response:
        await port.observe()
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def live(_request: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def ready(_request: web.Request) -> web.Response:
        faults = await port.failing()
        return web.json_response(
            {"status": "not ready" if faults else "ready", "failing": faults}, status=503 if faults else 200
        )

    app = web.Application()
    app.add_routes([web.get("/metrics", scrape), web.get("/livez", live), web.get("/readyz", ready)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, number)
        try:
            await site.start()
        except OSError as fault:
            raise ConfigurationError(f"cannot serve /metrics on {host}:{number}: {fault.strerror}") from fault
        port.number = runner.addresses[0][1]
        yield port
    finally:
        await runner.cleanup()
