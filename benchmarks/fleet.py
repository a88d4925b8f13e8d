"""The processes of one system by name: started, frozen while others have their turn, CPU and memory told (Linux)."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import imprimatur
from deploy.local import process as processes
from deploy.local.process import Process

#: For processes that run our modules: this checkout's benchmarks, and the services that are imported here.
PYTHONPATH = os.pathsep.join(
    [
        str(Path(__file__).resolve().parents[1]),
        str(Path(imprimatur.__file__).resolve().parents[1]),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
)
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_STOP_SECONDS = 20.0


class Fleet:
    """Processes by name. Those that were `added` belong to others, and are neither frozen nor ended here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._own: dict[str, Process] = {}
        self._others: dict[str, Process] = {}

    def spawn(self, name: str, words: Sequence[str], environ: Mapping[str, str]) -> Process:
        """Start `python words…`; it dies with us."""
        environ = {**_inherited(), **environ, "PYTHONPATH": PYTHONPATH}
        self._own[name] = processes.spawn(
            [sys.executable, *words], log=self.log(name), environ=environ, die_with_parent=True
        )
        return self._own[name]

    def add(self, name: str, process: Process, *, ours: bool = False) -> None:
        """Count this process in, under `name`."""
        (self._own if ours else self._others)[name] = process

    def forget(self, name: str) -> None:
        """A process that has ended, and was there for a moment only."""
        del self._own[name]

    def log(self, name: str) -> Path:
        """All output of a process."""
        return self.folder / f"{name}.log"

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time that each has used so far, its children's included."""
        return {
            name: sum(_cpu_seconds(member.pid) for member in processes.family(process))
            for name, process in (self._own | self._others).items()
        }

    def memory_mb(self) -> dict[str, float]:
        """Memory that each holds, its children's included."""
        return {
            name: sum(memory_bytes(member.pid) for member in processes.family(process)) / 1e6
            for name, process in (self._own | self._others).items()
        }

    def pid(self, name: str) -> int:
        """The pid of one of them."""
        return (self._own | self._others)[name].pid

    def process(self, name: str) -> Process:
        """One of them."""
        return (self._own | self._others)[name]

    def freeze(self) -> None:
        """Let none of ours use the processor."""
        for process in self._own.values():
            processes.suspend(process)

    def thaw(self) -> None:
        """Let them go on."""
        for process in self._own.values():
            processes.resume(process)

    def end(self) -> None:
        """End ours."""
        self.thaw()
        members = [member for process in self._own.values() for member in processes.family(process)]
        for process in self._own.values():
            process.send(signal.SIGTERM)
        processes.wait_gone(list(self._own.values()), _STOP_SECONDS)
        processes.end(members)
        self._own.clear()


def _inherited() -> dict[str, str]:
    """Our environment; of settings of Imprimatur only where traces go, so that all others are defaults."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("IMPRIMATUR_") or name in {"IMPRIMATUR_OTLP_ENDPOINT", "IMPRIMATUR_TRACE_SAMPLE_RATIO"}
    }


def _cpu_seconds(pid: int) -> float:
    """Of a process and of those of its children that have ended: a server's connections come and go."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS_PER_SECOND


def memory_bytes(pid: int) -> int:
    """Memory that one process holds; of what it shares with others only its part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
