"""What is measured: a stack on private servers with the no-op reviewer in place of the real one. No measuring here."""

import shutil
import signal
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local import process as processes
from deploy.local import stack
from deploy.local.process import Process
from deploy.local.server import read_state, write_state
from deploy.local.stack import Stack
from prometheus_client.parser import text_string_to_metric_families

_READY_SECONDS = 60.0
_TICKS_PER_SECOND = 100
PROCESSES = ("gateway", "reviewer", "notifier", "postgresql", "rabbitmq")


@contextmanager
def servers() -> Iterator[Stack]:
    """All servers inside the block; afterwards they and their folder are gone."""
    folder = Path(tempfile.mkdtemp(prefix="imprimatur-measure-"))
    try:
        running = stack.start(folder, die_with_parent=True)
        _replace_reviewer(running)
        yield running
    finally:
        stack.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _replace_reviewer(running: Stack) -> None:
    home = running.folder / "reviewer"
    members = processes.family(_process(running, "reviewer"))
    members[0].send(signal.SIGTERM)
    processes.wait_gone(members, _READY_SECONDS)
    log = home / "log"
    noop = processes.spawn(
        [sys.executable, "-m", "benchmarks.noop_reviewer"],
        log=log,
        environ={**running.environ, "PYTHONPATH": str(stack.REPOSITORY)},
        die_with_parent=True,
    )
    write_state(home, process=noop, settings={})
    if not processes.wait_until(lambda: _answers(running.ports["reviewer"], "readyz"), _READY_SECONDS):
        raise RuntimeError(f"the no-op reviewer is not ready:\n{log.read_text()}")


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=2):
            return True
    except OSError:
        return False


def _process(running: Stack, name: str) -> Process:
    process, _ = read_state(running.folder / name)
    assert process is not None
    return process


def cpu_seconds(running: Stack) -> dict[str, float]:
    """Processor time that each server has used so far, its children included (Linux)."""
    return {
        name: sum(_cpu_seconds(member.pid) for member in processes.family(_process(running, name)))
        for name in PROCESSES
    }


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def watch_lag(running: Stack) -> dict[str, float]:
    """The gateway's own histogram: the share of hand-outs within each bound, from hearing of a change."""
    with urllib.request.urlopen(f"http://127.0.0.1:{running.ports['gateway']}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    buckets = {
        float(sample.labels["le"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "imprimatur_watch_lag_seconds_bucket"
    }
    total = max(buckets.values(), default=0.0)
    return {f"{bound * 1000:g} ms": round(count / total, 4) for bound, count in buckets.items() if total}
