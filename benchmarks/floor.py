"""What gRPC alone costs here: an empty service under the calls and streams that the gateway answers. No library above
grpc.aio, so what Imprimatur costs can never be less.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import uvloop

from benchmarks.figures import median, percentile
from benchmarks.fleet import Fleet
from benchmarks.load import MOST_IN_FLIGHT
from benchmarks.remote import Remote, obeyed

_CALLS = 10_000
_WARM_UP_CALLS = 1000
_STREAMS = 10_000
_CLIENTS = 2
_STREAMS_PER_CONNECTION = 1000
_OPENING_AT_ONCE = 200
_CYCLES = 3
_REQUEST, _ANSWER = b"x" * 2000, b"y" * 600
_SERVICE = "imprimatur.benchmarks.Empty"


def measure() -> dict[str, Any]:
    """Processor time of either side for a call, and for a stream that is told two things and ends; how long all ends
    take to arrive. Medians of three cycles, each with processes of its own."""
    cycles = [_cycle() for _ in range(_CYCLES)]
    return {name: median(cycle[name] for cycle in cycles) for name in cycles[0]}


def _cycle() -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="imprimatur-bench-") as folder:
        fleet = Fleet(Path(folder))
        try:
            words = ["-m", "benchmarks.floor"]
            server, *clients = (Remote(fleet, name, words, {}) for name in ("server", *_names()))
            port = server.ask({"serve": True})["port"]
            return _calls(fleet, clients[0], port) | _streams(fleet, server, clients, port)
        finally:
            fleet.end()


def _names() -> list[str]:
    return [f"client-{number}" for number in range(_CLIENTS)]


def _calls(fleet: Fleet, client: Remote, port: int) -> dict[str, float]:
    client.ask({"port": port, "calls": _WARM_UP_CALLS})
    before = fleet.cpu_seconds()
    seconds = client.ask({"port": port, "calls": _CALLS})["seconds"]
    after = fleet.cpu_seconds()
    spent = {name: (after[name] - before[name]) * 1000 / _CALLS for name in after}
    return {
        "floor_calls_per_s": round(_CALLS / seconds, 1),
        "floor_call_server_cpu_ms": spent["server"],
        "floor_call_client_cpu_ms": spent[_names()[0]],
    }


def _streams(fleet: Fleet, server: Remote, clients: list[Remote], port: int) -> dict[str, float]:
    for client in clients:
        client.tell({"port": port, "streams": _STREAMS // _CLIENTS})
    for client in clients:
        client.answer()
    before = fleet.cpu_seconds()
    for client in clients:
        client.tell({"ends": True})
    told_at = server.ask({"tell": True})["at"]
    lags = [arrived - told_at for client in clients for arrived in client.answer()["arrivals"]]
    after = fleet.cpu_seconds()
    spent = {name: (after[name] - before[name]) * 1000 / _STREAMS for name in after}
    return {
        "floor_stream_server_cpu_ms": spent["server"],
        "floor_stream_client_cpu_ms": sum(spent[name] for name in _names()),
        "floor_stream_p50_s": round(statistics.median(lags), 3),
        "floor_stream_p99_s": round(percentile(lags, 0.99), 3),
    }


class _Empty:
    """Either side, in a process of its own."""

    def __init__(self) -> None:
        self._told = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._channels: list[grpc.aio.Channel] = []
        self._ends: list[asyncio.Task[float]] = []

    async def obey(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """`serve`, or `tell` all streams; `calls` and `streams` to a `port`, or wait for the `ends`."""
        if "serve" in wanted:
            return {"port": await self._serve()}
        if "tell" in wanted:
            self._told.set()
            return {"at": time.time()}
        if "ends" in wanted:
            return {"arrivals": await asyncio.gather(*self._ends)}
        if "calls" in wanted:
            return {"seconds": await self._call(wanted["port"], wanted["calls"])}
        return await self._open(wanted["port"], wanted["streams"])

    async def close(self) -> None:
        """Close the connections, and the server."""
        await asyncio.gather(*(channel.close() for channel in self._channels))
        if self._server is not None:
            await self._server.stop(None)

    async def _serve(self) -> int:
        async def call(_: bytes, __: Any) -> bytes:
            return _ANSWER

        async def watch(_: bytes, __: Any) -> AsyncIterator[bytes]:
            yield _ANSWER
            await self._told.wait()
            yield _ANSWER
            yield _ANSWER

        self._server = grpc.aio.server()
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Call": grpc.unary_unary_rpc_method_handler(call),
            "Watch": grpc.unary_stream_rpc_method_handler(watch),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return port

    def _channel(self, port: int) -> grpc.aio.Channel:
        # As the client library does: channels with the same options would share one connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options))
        return self._channels[-1]

    async def _call(self, port: int, calls: int) -> float:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel(port).unary_unary(f"/{_SERVICE}/Call")

        async def one_after_the_other() -> None:
            for _ in range(calls // MOST_IN_FLIGHT):
                await call(_REQUEST)

        began = time.perf_counter()
        await asyncio.gather(*(one_after_the_other() for _ in range(MOST_IN_FLIGHT)))
        return time.perf_counter() - began

    async def _open(self, port: int, streams: int) -> Mapping[str, Any]:
        opening = asyncio.Semaphore(_OPENING_AT_ONCE)
        opened = []
        for number in range(streams):
            if number % _STREAMS_PER_CONNECTION == 0:
                channel = self._channel(port)
            await opening.acquire()
            first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            first.add_done_callback(lambda _: opening.release())
            opened.append(first)
            self._ends.append(asyncio.create_task(_end(channel, first)))
        await asyncio.gather(*opened)
        return {}


async def _end(channel: grpc.aio.Channel, opened: asyncio.Future[None]) -> float:
    watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{_SERVICE}/Watch")
    async for _ in watch(_REQUEST):
        if not opened.done():
            opened.set_result(None)
    return time.time()


async def main() -> None:
    """Serve, or call."""
    empty = _Empty()
    try:
        await obeyed(sys.argv[1], empty.obey)
    finally:
        await empty.close()


if __name__ == "__main__":
    uvloop.run(main())
