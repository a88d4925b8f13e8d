"""A private Prometheus: its own data and configuration in one folder, one free port on 127.0.0.1.

It scrapes what it is told to, often, and knows the project's rules.
"""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from deploy.local import programs
from deploy.local.ports import free_port
from deploy.local.process import Process, spawn
from deploy.local.server import PrivateServer, earlier_settings, read_state, remove_tree, require_free

RULES = Path(__file__).resolve().parents[1] / "prometheus" / "rules" / "*.yaml"
_ANSWER_SECONDS = 10.0


class QueryFailed(RuntimeError):
    """Prometheus refused an expression; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Processes that are scraped alike. `addresses`: host:port."""

    job: str
    addresses: Sequence[str]
    path: str = "/metrics"
    parameters: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One series of an answer, at one time."""

    labels: dict[str, str]
    value: float


@dataclass(frozen=True, kw_only=True)
class PrometheusSettings:
    """What one private Prometheus was started with."""

    port: int
    config: str
    retention: str
    die_with_parent: bool


class PrivatePrometheus(PrivateServer):
    """One Prometheus server. Start it with `start`, find it again with `attach`."""

    def __init__(self, folder: Path, settings: PrometheusSettings, process: Process | None = None) -> None:
        super().__init__(folder, process)
        self.settings = settings
        self._programs = programs.prometheus()

    @classmethod
    def start(
        cls,
        folder: Path,
        targets: Sequence[Target],
        *,
        port: int | None = None,
        interval_seconds: int = 5,
        rules: Path = RULES,
        retention: str = "15d",
        die_with_parent: bool = True,
    ) -> Self:
        """Start a server that scrapes `targets`; returns when it answers queries.

        A folder that has been used before keeps its data. Without `port` the folder's earlier one, or a free one, is
        chosen. `rules` are files (a pattern) that it evaluates as often as it scrapes.
        Raises ServerDidNotStart, programs.ProgramMissing.
        """
        require_free(port)
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        earlier = earlier_settings(folder)
        config = json.dumps(_config(targets, interval_seconds, rules), indent=2)

        def settings() -> PrometheusSettings:
            return PrometheusSettings(
                port=port or free_port(earlier.pop("port", None)),
                config=config,
                retention=retention,
                die_with_parent=die_with_parent,
            )

        return cls._begin(lambda: cls(folder, settings()))

    @classmethod
    def attach(cls, folder: Path) -> Self:
        """The server that was started in `folder`, by whichever process; it may have ended since.

        Raises NothingStarted.
        """
        process, settings = read_state(folder.absolute())
        return cls(folder.absolute(), PrometheusSettings(**settings), process)

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return self.settings.port

    @property
    def url(self) -> str:
        """The address of its page and its API."""
        return f"http://127.0.0.1:{self.port}"

    def query(self, expression: str, *, at: float | None = None) -> list[Sample]:
        """The series that an expression has at a time (seconds of the epoch; by default now).

        Raises QueryFailed.
        """
        asked = {"query": expression} if at is None else {"query": expression, "time": f"{at:.3f}"}
        data = self._ask("query", asked)
        if data["resultType"] == "scalar":
            return [Sample(labels={}, value=float(data["result"][1]))]
        return [Sample(labels=one["metric"], value=float(one["value"][1])) for one in data["result"]]

    def targets(self) -> dict[tuple[str, str], str]:
        """What it scrapes and how that went last: (job, instance) to up, down or unknown."""
        found = self._ask("targets", {"state": "active"})["activeTargets"]
        return {(one["labels"]["job"], one["labels"]["instance"]): one["health"] for one in found}

    def alerts(self) -> list[dict[str, str]]:
        """The labels of what fires now."""
        return [one["labels"] for one in self._ask("alerts", {})["alerts"] if one["state"] == "firing"]

    def failing_rules(self) -> dict[str, str]:
        """The rules whose last evaluation failed, and why."""
        groups = self._ask("rules", {})["groups"]
        return {rule["name"]: rule["lastError"] for group in groups for rule in group["rules"] if "lastError" in rule}

    def _ask(self, what: str, asked: Mapping[str, str]) -> Any:
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(asked)}"
        try:
            with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as fault:
            raise QueryFailed(f"{asked}: {fault.read().decode(errors='replace')}") from None

    def _launch(self) -> Process:
        config = self.folder / "prometheus.yml"
        config.write_text(self.settings.config)
        command = [
            str(self._programs.bin / "prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--storage.tsdb.retention.time={self.settings.retention}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        return spawn(command, log=self.log, environ=os.environ, die_with_parent=self.settings.die_with_parent)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2.0):
                return True
        except OSError:
            return False

    def _settings(self) -> Mapping[str, Any]:
        return asdict(self.settings)

    def _remove_data(self) -> None:
        remove_tree(self.folder / "data")


def _config(targets: Sequence[Target], interval_seconds: int, rules: Path) -> dict[str, Any]:
    """prometheus.yml, of which JSON is a part."""
    interval = f"{interval_seconds}s"
    return {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": target.job,
                "metrics_path": target.path,
                "params": {name: list(values) for name, values in target.parameters.items()},
                "static_configs": [{"targets": list(target.addresses)}],
            }
            for target in targets
        ],
    }
