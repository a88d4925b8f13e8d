"""10,000 watch streams in one gateway process: to open them, to hold them, and to tell them all when their jobs end."""

import json
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.figures import percentile
from benchmarks.fleet import memory_bytes
from benchmarks.remote import Remote
from benchmarks.rounds import begin, turn, wait_finished
from benchmarks.servers import servers
from benchmarks.systems.ours import Ours
from deploy.local import process as processes

_JOBS = 100
_STREAMS = 10_000
_CLIENTS = 2
_LIGHT_JOBS, _LIGHT_PER_SECOND = 100, 20.0
_END_SECONDS = 600.0
_SETTLE_SECONDS = 2.0


def measure() -> dict[str, Any]:
    """100 jobs, each watched by 100 streams from other processes, end together: the reviewer is frozen until then."""
    with servers() as under:
        system = Ours(under)
        begin(system)
        clients = [
            Remote(system.fleet, name, ["-m", "benchmarks.watchers"], system.access.environ) for name in _names()
        ]
        with turn(system):
            light = clients[0].ask({"jobs": _LIGHT_JOBS, "per_second": _LIGHT_PER_SECOND})["lags"]
            figures = _watched(system, clients)
        system.fleet.end()
    return {"stream_end_p50_ms": round(percentile(light, 0.5) * 1000, 1), **figures}


def _watched(system: Ours, clients: list[Remote]) -> dict[str, Any]:
    before, reviewer = system.finished(), system.fleet.process("reviewer")
    processes.suspend(reviewer)
    ids = system.loader.submit(_JOBS, in_flight=10).ids
    held_bytes = memory_bytes(system.fleet.pid("gateway"))
    began, idle = time.perf_counter(), system.fleet.cpu_seconds()
    for client in clients:
        client.tell({"ids": ids, "streams": _STREAMS // _CLIENTS})
    first = [seconds for client in clients for seconds in client.answer()["first_answers"]]
    opened_seconds, opened = time.perf_counter() - began, system.fleet.cpu_seconds()
    time.sleep(_SETTLE_SECONDS)
    each = (memory_bytes(system.fleet.pid("gateway")) - held_bytes) / _STREAMS
    processes.resume(reviewer)
    for client in clients:
        client.tell({"wait_seconds": _END_SECONDS})
    ends = [client.answer() for client in clients]
    wait_finished(system, before + _JOBS)
    told = system.fleet.cpu_seconds()
    lags = [lag for end in ends for lag in end["lags"]]
    query = "SELECT extract(epoch FROM min(finished_at)) FROM jobs WHERE id = ANY(%s::uuid[])"
    first_end = float(system.ask(query, [ids]))
    return {
        "streams": len(lags),
        "stream_open_s": round(opened_seconds, 2),
        "stream_open_per_s": round(_STREAMS / opened_seconds, 1),
        "stream_first_answer_p50_ms": round(percentile(first, 0.5) * 1000, 1),
        "stream_open_cpu_ms": _each(idle, opened, "gateway"),
        "stream_fanout_cpu_ms": _each(opened, told, "gateway"),
        "stream_fanout_clients_cpu_ms": _each(opened, told, *_names()),
        "stream_kb_each": round(each / 1024, 1),
        "stream_fanout_p50_s": round(percentile(lags, 0.5), 3),
        "stream_fanout_p99_s": round(percentile(lags, 0.99), 3),
        "stream_fanout_worst_s": round(max(lags), 3),
        "stream_fanout_all_s": round(max(max(end["arrivals"]) for end in ends) - first_end, 3),
    }


def _names() -> list[str]:
    return [f"watchers-{number}" for number in range(_CLIENTS)]


def _each(before: Mapping[str, float], after: Mapping[str, float], *names: str) -> float:
    """Milliseconds of processor time a stream."""
    return round(sum(after[name] - before[name] for name in names) * 1000 / _STREAMS, 3)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
