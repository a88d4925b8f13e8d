"""What PromQL expressions speak of: metrics, labels and values; and what of that there is.

No parser: the expressions are ours, and Prometheus itself has read them in other tests.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from grpc import StatusCode
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from deploy.prometheus import rulebook
from imprimatur import metrics
from imprimatur.broker import EVENTS, Queue
from imprimatur.errors import UnreviewableInput
from imprimatur.job import AttemptOutcome, JobType, Priority, State
from imprimatur.policy import Decision, Trigger
from imprimatur.v1 import admin_service_pb2, job_service_pb2, review_service_pb2, webhook_service_pb2

#: What Prometheus adds to everything that it scrapes; namespace on Kubernetes only.
TARGET = frozenset({"job", "instance", "namespace"})
#: What others export: RabbitMQ's plugin, postgres_exporter or CloudNativePG, Prometheus itself.
FOREIGN: Mapping[str, frozenset[str]] = {
    "up": frozenset(),
    "ALERTS": frozenset(
        {"alertname", "alertstate", "severity", "service", "priority", "slo", "queue", "loop", "rpc", "provider"}
    ),
    "rabbitmq_alarms_memory_used_watermark": frozenset(),
    "rabbitmq_alarms_free_disk_space_watermark": frozenset(),
    "rabbitmq_process_resident_memory_bytes": frozenset(),
    "rabbitmq_resident_memory_limit_bytes": frozenset(),
    "rabbitmq_detailed_queue_messages": frozenset({"vhost", "queue"}),
    "rabbitmq_detailed_queue_consumers": frozenset({"vhost", "queue"}),
    "pg_stat_activity_count": frozenset({"datname", "state"}),
    "pg_stat_database_xact_commit": frozenset({"datid", "datname"}),
    "pg_stat_database_xact_rollback": frozenset({"datid", "datname"}),
    "pg_database_size_bytes": frozenset({"datname"}),
    "cnpg_backends_total": frozenset({"datname", "state", "usename", "application_name"}),
    "cnpg_pg_stat_database_xact_commit": frozenset({"datname"}),
    "cnpg_pg_stat_database_xact_rollback": frozenset({"datname"}),
    "cnpg_pg_database_size_bytes": frozenset({"datname"}),
}

_MATCHERS = re.compile(r'\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\}')
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NAME = re.compile(r"(?<![\w.:$])([a-zA-Z_:][\w:]*)(\{\d+\})?(?!\s*\()(?![\w:])")
_WORDS = {"and", "or", "unless", "bool", "offset", "on", "by", "sum", "max", "min", "avg", "count"}


@dataclass(frozen=True, kw_only=True)
class Selector:
    """A metric's name, and (label, operator, value) of each matcher."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]


def selectors(expr: str) -> list[Selector]:
    """Every metric that an expression speaks of."""
    found: list[tuple[tuple[str, str, str], ...]] = []

    def number(match: re.Match[str]) -> str:
        found.append(tuple(_MATCHER.findall(match[1])))
        return f"{{{len(found) - 1}}}"

    text = _GROUPING.sub(" ", re.sub(r"\[[^\]]*\]", " ", _MATCHERS.sub(number, expr)))
    named = [match for match in _NAME.finditer(text) if match[1] not in _WORDS]
    return [Selector(metric=match[1], matchers=found[int(match[2].strip("{}"))] if match[2] else ()) for match in named]


def grouped(expr: str) -> set[str]:
    """The labels by which an expression groups and matches."""
    return {label.strip() for match in _GROUPING.finditer(expr) for label in match[1].split(",") if label.strip()}


@cache
def known() -> Mapping[str, frozenset[str]]:
    """Every sample's name that can be scraped or is recorded, with its own labels."""
    found = dict(FOREIGN)
    for collector in vars(metrics).values():
        if isinstance(collector, Counter | Gauge | Histogram | metrics.DatabaseGauge):
            found |= dict(_samples(collector))
    for family in REGISTRY.collect():
        if family.name.startswith(("process_", "python_")):
            found |= {sample.name: frozenset(sample.labels) for sample in family.samples}
    for recording in rulebook.recordings():
        found[recording.name] = frozenset({*recording.labels, "namespace"})
    return found


def _samples(collector: Any) -> Iterator[tuple[str, frozenset[str]]]:
    labels = frozenset(collector.labels if isinstance(collector, metrics.DatabaseGauge) else collector._labelnames)
    [family] = collector.describe()
    if isinstance(collector, Histogram):
        yield f"{family.name}_bucket", labels | {"le"}
        yield f"{family.name}_sum", labels
        yield f"{family.name}_count", labels
    else:
        yield f"{family.name}_total" if isinstance(collector, Counter) else family.name, labels


def _rpcs() -> frozenset[str]:
    files = (admin_service_pb2, job_service_pb2, review_service_pb2, webhook_service_pb2)
    return frozenset(
        method.name
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    )


def _loops() -> frozenset[str]:
    """Background loops by name: what a Loop is made with, and those that count their own failures."""
    made = re.compile(r'\bLoop\(\s*"([\w-]+)"')
    services = rulebook.REPOSITORY / "services"
    named = {name for path in services.rglob("*.py") for name in made.findall(path.read_text(encoding="utf-8"))}
    [family] = metrics.loop_failures.collect()
    return frozenset(named | {sample.labels["loop"] for sample in family.samples})


#: Labels of ours whose values are a closed set.
VALUES: Mapping[str, frozenset[str]] = {
    "state": frozenset(State),
    "type": frozenset(JobType),
    "priority": frozenset(priority.name.lower() for priority in Priority),
    "decision": frozenset(Decision),
    "policy_triggered": frozenset(Trigger),
    "overrides_ai": frozenset({"true", "false"}),
    "code": frozenset(code.name for code in StatusCode),
    "rpc": _rpcs(),
    "queue": frozenset({*Queue, EVENTS}),
    "service": frozenset({"gateway", "reviewer", "notifier", "serve"}),
    "outcome": frozenset({*AttemptOutcome, "delivered", "refused", "failed", "blocked"}),
    "slo": frozenset({"submit", "start", "review"}),
    "loop": _loops(),
    "alertname": frozenset(alert.name for alert in rulebook.alerts()),
    "alertstate": frozenset({"pending", "firing"}),
    "severity": frozenset(alert.severity for alert in rulebook.alerts()),
    "result": frozenset({"claimed", "stale", "given_back", "confirmed", "failed"}),
    "error_code": frozenset({*metrics.ATTEMPT_ERRORS, UnreviewableInput.code}),
}


def faults(expr: str) -> list[str]:
    """What an expression speaks of that nobody exports: metrics, labels, values."""
    found: list[str] = []
    usable: set[str] = set(TARGET)
    for selector in selectors(expr):
        if selector.metric not in known():
            found.append(f"nobody exports {selector.metric}")
            continue
        labels = known()[selector.metric] | TARGET
        usable |= labels
        for label, operator, value in selector.matchers:
            if label not in labels:
                found.append(f"{selector.metric} has no label {label}")
            elif "$" not in value and label in VALUES and not _some(operator, value, VALUES[label]):
                found.append(f'{selector.metric} never has {label}{operator}"{value}"')
    found += [f"no metric of it has the label {label}" for label in sorted(grouped(expr) - usable)]
    return found


def made_up(series: str) -> list[str]:
    """What is wrong with a series of a test: no process exports it, or not with these labels, or never such a value."""
    [selector] = selectors(series)
    labels = {label for label, _, _ in selector.matchers} - TARGET
    found = faults(series)
    if selector.metric not in FOREIGN and (missing := known().get(selector.metric, frozenset()) - TARGET - labels):
        found.append(f"{selector.metric} has the labels {sorted(missing)} too")
    ends = {value for label, _, value in selector.matchers if label == "le"}
    if unknown := ends - _bucket_ends(selector.metric):
        found.append(f"{selector.metric} has no bucket {sorted(unknown)}")
    return found


def _bucket_ends(metric: str) -> set[str]:
    for collector in vars(metrics).values():
        if isinstance(collector, Histogram) and f"{collector._name}_bucket" == metric:
            return {str(end) if math.isfinite(end) else "+Inf" for end in collector._upper_bounds}
    return set()


def _some(operator: str, value: str, values: frozenset[str]) -> bool:
    """Whether each alternative of a matcher is a value that there is."""
    wanted = value.split("|") if operator in {"=~", "!~"} else [value]
    return all(any(re.fullmatch(one, known) for known in values) for one in wanted)
