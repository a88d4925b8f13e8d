"""`python -m tests.service.noisy_service`: a service in which everything fails that libraries report by themselves.

Its first line on standard output is its HTTP port, whose /metrics fails.
"""

import asyncio
import gc
import sys
import warnings

from imprimatur.process import run_service
from imprimatur.runtime import StopSignal, configure_logging, http_port
from imprimatur.settings import TracingSettings


async def run(_settings: TracingSettings, stop: StopSignal) -> None:
    """Until SIGTERM, and then it fails for good."""
    configure_logging(json=True)
    async with http_port("127.0.0.1", 0) as http, http.ready({}, _fail):
        asyncio.get_running_loop().call_soon(_fail_at_once)
        forgotten = asyncio.create_task(_fail())
        await asyncio.wait([forgotten])
        del forgotten
        gc.collect()
        warnings.warn("this is old", RuntimeWarning, stacklevel=1)
        sys.stdout.write(f"{http.number}\n")
        sys.stdout.flush()
        await stop.wait()
    _fail_at_once()


async def _fail() -> None:
    _fail_at_once()


def _fail_at_once() -> None:
    raise RuntimeError("this failed\nin two lines")


if __name__ == "__main__":
    run_service(TracingSettings, run)
