"""What a dashboard is made of, and the JSON that Grafana makes of it (schema 39, Grafana 10 and later).

A query is written with OURS among its matchers where it is about our own processes: the namespaces and instances
that the reader has chosen. A gauge about the database is exported by every process alike: take `max` over the
instances of a namespace before anything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

OURS = 'namespace=~"$namespace", instance=~"$instance"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
TAG = "imprimatur"
_WIDTH = 24
_ALL = {"selected": True, "text": ["All"], "value": ["$__all"]}


@dataclass(frozen=True, kw_only=True)
class Query:
    """One PromQL expression; `legend` names a series by its labels, as in "{{priority}}"."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture.

    Args:
        description: one sentence: what it shows, and what to make of it.
        unit: Grafana's name of it: s, percentunit, bytes, short, ops, reqps.
        steps: (from this value on, colour); below the first it is green.
        runbook: the alert whose page says what to do about it.
        height: in Grafana's rows of 30 pixels.
    """

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    steps: Sequence[tuple[float, str]] = ()
    runbook: str = ""
    stacked: bool = False
    height: int = 8

    #: Grafana's name of the kind.
    kind = "timeseries"

    def options(self) -> dict[str, Any]:
        """What Grafana calls the panel's options."""
        return {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }

    def custom(self) -> dict[str, Any]:
        """What is particular to the kind, of each field."""
        return {
            "fillOpacity": 20 if self.stacked else 5,
            "lineWidth": 1,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if self.stacked else "none"},
            "thresholdsStyle": {"mode": "dashed" if self.steps else "off"},
        }


@dataclass(frozen=True, kw_only=True)
class Number(Panel):
    """The newest value alone, large."""

    height: int = 4

    kind = "stat"

    def options(self) -> dict[str, Any]:
        """As for every panel."""
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "area",
            "textMode": "auto",
        }

    def custom(self) -> dict[str, Any]:
        """As for every panel."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Table(Panel):
    """The newest value of each series as a row."""

    height: int = 5

    kind = "table"

    def options(self) -> dict[str, Any]:
        """As for every panel."""
        return {"showHeader": True}

    def custom(self) -> dict[str, Any]:
        """As for every panel."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Panels side by side, all equally wide and high, under a headline."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """One page."""

    name: str
    title: str
    description: str
    rows: Sequence[Row]

    @property
    def uid(self) -> str:
        """By which Grafana knows it again after a change."""
        return f"imprimatur-{self.name}"

    @property
    def panels(self) -> list[Panel]:
        """All panels, row by row."""
        return [panel for row in self.rows for panel in row.panels]


def quantiles(metric: str, matchers: str = "") -> tuple[Query, ...]:
    """The median, the 95th and the 99th percentile of a histogram of seconds."""
    chosen = f"{OURS}, {matchers}" if matchers else OURS
    return tuple(
        Query(
            expr=f"histogram_quantile({quantile}, sum by (le) (rate({metric}_bucket{{{chosen}}}[$__rate_interval])))",
            legend=legend,
        )
        for quantile, legend in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
    )


def rendered(dashboard: Dashboard) -> dict[str, Any]:
    """The JSON that Grafana imports."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [TAG],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [
            {"type": "dashboards", "title": "Imprimatur", "tags": [TAG], "asDropdown": True, "keepTime": True},
        ],
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "panels": _panels(dashboard),
    }


def _variables() -> list[dict[str, Any]]:
    chosen = {"datasource": DATASOURCE, "type": "query", "includeAll": True, "multi": True, "allValue": ".*"}
    asked = (
        ("namespace", "Namespace", "label_values(imprimatur_build_info, namespace)"),
        ("instance", "Instance", 'label_values(imprimatur_build_info{namespace=~"$namespace"}, instance)'),
    )
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        *(
            {**chosen, "name": name, "label": label, "query": query, "refresh": 2, "sort": 1, "current": _ALL}
            for name, label, query in asked
        ),
        {
            "name": "runbooks",
            "label": "Runbooks",
            "description": "Where docs/runbooks is served",
            "type": "textbox",
            "query": "/public/runbooks",
            "current": {"text": "/public/runbooks", "value": "/public/runbooks"},
        },
    ]


def _panels(dashboard: Dashboard) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    top = 0
    for row in dashboard.rows:
        place = {"x": 0, "y": top, "w": _WIDTH, "h": 1}
        made.append({"id": len(made) + 1, "type": "row", "title": row.title, "gridPos": place, "panels": []})
        top += 1
        width, height = _WIDTH // len(row.panels), max(panel.height for panel in row.panels)
        for number, panel in enumerate(row.panels):
            place = {"x": number * width, "y": top, "w": width, "h": height}
            made.append({"id": len(made) + 1, "gridPos": place, **_panel(panel)})
        top += height
    return made


def _panel(panel: Panel) -> dict[str, Any]:
    steps = [{"color": "green", "value": None}, *({"color": colour, "value": value} for value, colour in panel.steps)]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
                "thresholds": {"mode": "absolute", "steps": steps},
                "custom": panel.custom(),
            },
            "overrides": [],
        },
        "options": panel.options(),
        "targets": [_target(panel, query, ascii_uppercase[number]) for number, query in enumerate(panel.queries)],
        "links": [_runbook(panel.runbook)] if panel.runbook else [],
    }


def _target(panel: Panel, query: Query, letter: str) -> dict[str, Any]:
    target: dict[str, Any] = {"refId": letter, "datasource": DATASOURCE, "expr": query.expr}
    if query.legend:
        target["legendFormat"] = query.legend
    if panel.kind == "table":
        target |= {"instant": True, "format": "table"}
    return target


def _runbook(alert: str) -> dict[str, Any]:
    return {"title": f"Runbook: {alert}", "url": f"${{runbooks:raw}}/{alert}.md", "targetBlank": True}
