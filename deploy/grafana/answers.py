"""What Prometheus answers to a panel: its variables filled in as Grafana would, its series named by their legends."""

import re

from deploy.grafana.panels import Query
from deploy.local.prometheus import PrivatePrometheus, Sample


def ask(
    prometheus: PrivatePrometheus, query: Query, *, window_seconds: int, at: float | None = None
) -> dict[str, float]:
    """The number of each series at a time (seconds of the epoch; by default now), by its legend.

    Everything is chosen in the dashboard's variables, and both of Grafana's windows are `window_seconds`.

    Raises:
        QueryFailed: Prometheus does not understand the question.
    """
    filled = {
        "namespace": ".*",
        "instance": ".*",
        "__rate_interval": f"{window_seconds}s",
        "__range": f"{window_seconds}s",
    }
    expr = re.sub(r"\$(\w+)", lambda match: filled[match[1]], query.expr)
    return {_legend(query, sample): sample.value for sample in prometheus.query(expr, at=at)}


def _legend(query: Query, sample: Sample) -> str:
    labels = {"namespace": "", **sample.labels}  # there is none outside Kubernetes
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels[match[1]], query.legend).strip()
