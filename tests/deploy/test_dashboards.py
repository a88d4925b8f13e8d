"""The dashboards as they are described: current, readable, and about metrics that exist."""

import re
from pathlib import Path

import pytest
import yaml

from deploy.grafana import __main__ as writing
from deploy.grafana.catalogue import DASHBOARDS, FOLDER
from deploy.grafana.panels import Dashboard, Panel, Query, Row, rendered
from deploy.prometheus import rulebook
from tests.deploy import promql

ROOT = Path(__file__).parents[2]
PANELS = [
    pytest.param(dashboard, panel, id=f"{dashboard.name}: {panel.title}")
    for dashboard in DASHBOARDS
    for panel in dashboard.panels
]
#: What Grafana fills in, and what the readers choose.
_VARIABLES = {"namespace", "instance", "__rate_interval", "__range"}


def test_the_json_is_what_the_descriptions_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["deploy.grafana", "--check"])
    assert writing.main() == 0


def test_a_file_that_was_edited_or_belongs_to_nothing_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writing, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["deploy.grafana"])
    assert writing.main() == 0
    (tmp_path / "people.json").write_text("{}")
    (tmp_path / "old.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["deploy.grafana", "--check"])
    assert writing.main() == 1
    assert re.findall(r"(\w+)\.json", capsys.readouterr().err) == ["people", "old"]
    monkeypatch.setattr("sys.argv", ["deploy.grafana"])
    assert writing.main() == 0
    assert sorted(path.stem for path in tmp_path.glob("*")) == sorted(one.name for one in DASHBOARDS)


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_a_panel_speaks_of_what_is_exported(dashboard: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        assert promql.selectors(query.expr), query.expr
        assert not promql.faults(query.expr)
        assert set(re.findall(r"\$(\w+)", query.expr)) <= _VARIABLES
        assert "vector(" not in query.expr, "a panel without data shall say so"


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_a_panel_explains_itself(dashboard: Dashboard, panel: Panel) -> None:
    assert [one.title for one in dashboard.panels].count(panel.title) == 1
    assert re.fullmatch(r"[A-Z1].{10,130}\.|[A-Za-z]\w.{10,130}[\w)`]?\.?", panel.description), panel.description
    assert panel.unit
    if panel.runbook:
        assert panel.runbook in {alert.name for alert in rulebook.alerts()}


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_a_legend_names_labels_that_the_answer_has(dashboard: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        named = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
        aggregated = re.search(r"\b(sum|max|min|count|histogram_quantile)\b", query.expr) is not None
        assert named <= (promql.grouped(query.expr) if aggregated else promql.TARGET), query
        if len(panel.queries) > 1:
            assert query.legend


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.name)
def test_rows_hold_few_panels_and_nothing_lies_on_anything(dashboard: Dashboard) -> None:
    assert all(1 <= len(row.panels) <= 6 for row in dashboard.rows)
    taken: set[tuple[int, int]] = set()
    for panel in rendered(dashboard)["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert all(x < 24 for x, _ in cells)
        assert not cells & taken
        taken |= cells
    ids = [panel["id"] for panel in rendered(dashboard)["panels"]]
    assert len(ids) == len(set(ids))


def test_no_query_is_left_out_however_many_there_are() -> None:
    def targets(queries: int) -> list[dict[str, str]]:
        asked = [Query(expr=f"up == {number}") for number in range(queries)]
        row = Row(title="", panels=[Panel(title="", description="", unit="short", queries=asked)])
        _, made = rendered(Dashboard(name="", title="", description="", rows=[row]))["panels"]
        return [{"expr": target["expr"], "refId": target["refId"]} for target in made["targets"]]

    assert targets(9)[-1] == {"expr": "up == 8", "refId": "I"}
    assert len({target["refId"] for target in targets(26)}) == 26
    with pytest.raises(IndexError):
        targets(27)


def test_every_dashboard_is_made_into_a_config_map() -> None:
    kustomization = yaml.safe_load((FOLDER.parent / "kustomization.yaml").read_text())
    listed = [file for one in kustomization["configMapGenerator"] for file in one["files"]]
    assert sorted(listed) == sorted(f"dashboards/{one.name}.json" for one in DASHBOARDS)
    assert kustomization["generatorOptions"]["labels"]["grafana_dashboard"] == "1"


# --- the tool itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "fault"),
    [
        ("sum(rate(imprimatur_jobs_submited_total[5m]))", "nobody exports imprimatur_jobs_submited_total"),
        ("imprimatur_jobs_submitted", "nobody exports imprimatur_jobs_submitted"),
        ('imprimatur_jobs{status="queued"}', "imprimatur_jobs has no label status"),
        ('imprimatur_jobs{state="waiting"}', 'imprimatur_jobs never has state="waiting"'),
        (
            'rate(imprimatur_rpc_requests_total{code=~"OK|Unavailable"}[5m])',
            'imprimatur_rpc_requests_total never has code=~"OK|Unavailable"',
        ),
        ('ALERTS{alertname="ImprimaturWatchdock"}', 'ALERTS never has alertname="ImprimaturWatchdock"'),
        ('ALERTS{alertname=~"Imprimaturs.+"}', 'ALERTS never has alertname=~"Imprimaturs.+"'),
        ('ALERTS{alertstate="fires"}', 'ALERTS never has alertstate="fires"'),
        ('ALERTS{severity!="nothing"}', 'ALERTS never has severity!="nothing"'),
        (
            'imprimatur_background_failures_total{loop="outbox-puller"}',
            'imprimatur_background_failures_total never has loop="outbox-puller"',
        ),
        ("sum by (tenant) (imprimatur_jobs)", "no metric of it has the label tenant"),
        ("imprimatur:budget_burn:rate7m > 1", "nobody exports imprimatur:budget_burn:rate7m"),
        ("a and on (job) b", "nobody exports a"),
    ],
)
def test_what_nobody_exports_is_found(expr: str, fault: str) -> None:
    assert fault in promql.faults(expr)
