"""Real processes for end-to-end tests: commands, servers, the webhook receiver. All die with the test run."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from deploy.local import process as processes
from deploy.local.ports import free_port
from deploy.local.process import Process
from deploy.local.server import read_state
from deploy.local.stack import SERVICES, Stack
from examples import webhook_receiver
from imprimatur.client import Client
from tests.patience import PATIENCE_SECONDS

IMPRIMATUR = (sys.executable, "-m", "cli")
#: (name, labels) and value.
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

START_SECONDS = PATIENCE_SECONDS
STOP_SECONDS = PATIENCE_SECONDS
_MEGABYTE = 1024 * 1024
#: To Linux the parent that children die with is the thread that made them: this one lives as long as the test run.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


class Child:
    """One process that we started, its output in `log`."""

    def __init__(self, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None) -> None:
        self.log = log
        self._offset = log.stat().st_size if log.exists() else 0
        words = [*processes.privileges(None, die_with_parent=True), *command]
        with log.open("ab") as output:
            self._popen = _SPAWNER.submit(
                subprocess.Popen,
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(os.environ if environ is None else environ),
                start_new_session=True,
            ).result()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def output(self) -> str:
        """What it wrote so far."""
        return self.log.read_bytes()[self._offset :].decode(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """None while it lives."""
        return self._popen.poll()

    def until(self, ready: Callable[[], bool], what: str) -> None:
        """Wait until `ready`; fails with the log when the process ends first, or in too long a time."""

        def done() -> bool:
            assert self.exit_code is None, f"{what}: ended with {self.exit_code}\n{self.output}"
            return ready()

        assert processes.wait_until(done, START_SECONDS), f"{what}: not within {START_SECONDS} s\n{self.output}"

    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.exit_code is None

    def terminate(self, *, timeout_seconds: float = STOP_SECONDS) -> int:
        """SIGTERM; its exit code."""
        self.send(signal.SIGTERM)
        return self.wait(timeout_seconds)

    def wait(self, timeout_seconds: float) -> int:
        """Its exit code once it has ended."""
        return self._popen.wait(timeout_seconds)

    def send(self, number: signal.Signals) -> None:
        """Signal it, if it lives."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to this one process; returns when it is gone."""
        self._popen.kill()
        self._popen.wait()

    def discard(self) -> None:
        """End it with all its descendants, however it is."""
        members = family(self.pid)
        self.kill()
        for pid in members[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Embedded(Child):
    """One `imprimatur serve` on the folder `data`; ready when constructed."""

    def __init__(self, data: Path, *words: str) -> None:
        left = data / "client.json"
        before = left.stat().st_mtime_ns if left.exists() else 0
        super().__init__(serve_command(data, *words), data.with_name(f"{data.name}.log"))
        self.until(lambda: left.exists() and left.stat().st_mtime_ns > before, "imprimatur serve")
        self.data = data
        self.access: dict[str, str] = json.loads(left.read_text())

    def client(self) -> Client:
        """A client with the folder's key."""
        return Client(self.access["target"], api_key=self.access["api_key"])

    def command(self, *words: str) -> Any:
        """What `imprimatur WORDS --json` prints, parsed; a stream's lines become a list. Fails on an exit code."""
        done = command(*words, "--json", environ={**os.environ, "IMPRIMATUR_DATA": str(self.data)})
        assert done.returncode == 0, done.stderr
        try:
            return json.loads(done.stdout)
        except ValueError:
            return [json.loads(line) for line in done.stdout.splitlines()]

    def pss_megabytes(self) -> float:
        """Proportional set size of the whole process tree now."""
        return pss_megabytes(self.pid)


class Service(Child):
    """One more gateway, reviewer or notifier of a stack, on ports of its own; ready when constructed."""

    def __init__(self, name: str, stack: Stack, log: Path, settings: Mapping[str, str]) -> None:
        grpc_port = free_port()
        self.target = f"127.0.0.1:{grpc_port}"
        self.http_port = free_port()
        ports = {"IMPRIMATUR_GRPC_PORT": str(grpc_port), SERVICES[name]: str(self.http_port)}
        super().__init__([*IMPRIMATUR, name], log, {**stack.environ, **ports, **settings})
        self.until(lambda: is_ready(self.http_port), name)


class Trio:
    """A stack whose services can be replaced one by one while it works."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.current: dict[str, Process | Service] = {}
        self.http_ports = dict(stack.ports)
        for name in SERVICES:
            process, _ = read_state(stack.folder / name)
            assert process is not None
            self.current[name] = process
        self.targets = [stack.target]
        self._started: list[Service] = []

    def start(self, name: str, **settings: str) -> Service:
        """One more of a kind; `settings` as they are written in the environment."""
        service = Service(name, self.stack, self.stack.folder / f"{name}-{len(self._started)}.log", settings)
        self._started.append(service)
        return service

    def remove(self, name: str, number: signal.Signals, *, successor: Service) -> None:
        """Signal the current one of a kind; returns when it is gone and `successor` is the current one."""
        member = self.current[name]
        member.send(number)
        assert processes.wait_until(lambda: not member.alive(), STOP_SECONDS), f"{name} does not end"
        self.current[name] = successor
        self.http_ports[name] = successor.http_port
        if name == "gateway":
            self.targets = [successor.target]

    def client(self, *targets: str) -> Client:
        """A client of these gateways, by default of all."""
        return Client(f"ipv4:{','.join(targets or self.targets)}", api_key=self.stack.api_key)

    def stop(self) -> None:
        """End what was started here; the stack itself is ended by its own means."""
        for service in self._started:
            service.discard()


def is_ready(http_port: int) -> bool:
    """Whether /readyz says so."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/readyz", timeout=5):
            return True
    except OSError:
        return False


def get(http_port: int, path: str) -> tuple[int, str]:
    """Status and body of what a process answers there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{http_port}{path}", timeout=PATIENCE_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read().decode()


def scrape(http_port: int) -> Samples:
    """The samples of /metrics, by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=PATIENCE_SECONDS) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def serve_command(data: Path, *words: str) -> list[str]:
    """The command line of a server on free ports."""
    return [*IMPRIMATUR, "serve", "--data", str(data), "--port", "0", "--metrics-port", "0", *words]


def command(*words: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `imprimatur WORDS` to its end."""
    return subprocess.run(
        [*IMPRIMATUR, *words], env=environ, capture_output=True, text=True, timeout=START_SECONDS, check=False
    )


class Receiver(Child):
    """examples/webhook_receiver.py as a process; ready when constructed."""

    def __init__(self, folder: Path, secret: str) -> None:
        self._out = folder / "webhooks.jsonl"
        program = [sys.executable, webhook_receiver.__file__, "--out", str(self._out), "--port", "0"]
        environ = {**os.environ, webhook_receiver.SECRET_VARIABLE: secret}
        super().__init__(program, folder / "receiver.log", environ)
        self.until(lambda: self.output.endswith("\n"), "the webhook receiver")
        self.url = self.output.splitlines()[0].split()[-1]

    def messages(self) -> list[dict[str, Any]]:
        """What it verified so far, each message once."""
        text = self._out.read_text() if self._out.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def told(self) -> Counter[tuple[str, str]]:
        """How many different messages told of (job id, event type)."""
        return Counter((message["body"]["data"]["job_id"], message["body"]["type"]) for message in self.messages())


def family(pid: int) -> list[int]:
    """A process and all its descendants now; empty when it is gone."""
    found = [pid] if Path(f"/proc/{pid}").exists() else []
    for member in found:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, children.read_text().split())
    return found


def pss_megabytes(pid: int) -> float:
    """Proportional set size of a process and its descendants: shared pages count once in all."""
    total = 0
    for member in family(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total / _MEGABYTE
