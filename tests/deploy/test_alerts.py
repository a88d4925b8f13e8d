"""The alerts and recording rules: read and tried by promtool, each both firing and silent, each with its page."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.grafana.catalogue import DASHBOARDS
from deploy.local import programs
from deploy.prometheus import __main__ as writing
from deploy.prometheus import rulebook
from deploy.prometheus.rulebook import Alert, Recording
from tests.deploy import mutants, promql
from tests.deploy.boundaries import BOUNDARIES

ROOT = Path(__file__).parents[2]
ALERTS = [
    pytest.param(alert, id=" ".join((alert.name, alert.severity, alert.labels.get("service", ""))))
    for alert in rulebook.alerts()
]
#: It speaks of nothing, fires always, and wakes nobody while it does.
WATCHDOG = "ImprimaturWatchdog"
RECORDINGS = [pytest.param(one, id=" ".join((one.name, *one.labels.values()))) for one in rulebook.recordings()]


def promtool(*words: str | Path) -> None:
    """Fails with what promtool says when it is not content."""
    command = [programs.prometheus().bin / "promtool", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_reads_the_rules_and_the_configuration() -> None:
    promtool("check", "rules", *rulebook.RULES)
    promtool("check", "config", rulebook.FOLDER / "prometheus.yml")


@pytest.mark.parametrize("tests", rulebook.TESTS, ids=lambda path: path.stem)
def test_the_rules_do_what_their_tests_say(tests: Path) -> None:
    promtool("test", "rules", tests)


@pytest.mark.soak  # hundreds of mutants
def test_no_for_threshold_namespace_or_window_of_an_alert_can_go_unnoticed(tmp_path: Path) -> None:
    """The rules as they are fire at their boundaries; with one of these changed or taken away, not there."""
    named = mutants.write_alerts(tmp_path)
    failed = failures(tmp_path, r"alertname: (\w+),")
    assert [name for name, what in named.items() if what == mutants.UNCHANGED and name in failed] == []
    assert [what for name, what in named.items() if what != mutants.UNCHANGED and name not in failed] == []


@pytest.mark.soak  # hundreds of mutants
def test_no_selector_grouping_or_budget_of_an_objective_can_go_unnoticed(tmp_path: Path) -> None:
    """What is recorded of each objective is right in every window; of a changed one, in some window it is not."""
    named = mutants.write_objectives(tmp_path)
    failed = failures(tmp_path, r"(mutant_\w+?):")
    assert named.pop("mutant_0") == mutants.UNCHANGED
    assert failed == set(named), {name: named.get(name) for name in failed ^ set(named)}


def test_what_fires_is_on_the_panel_and_what_only_waits_or_is_the_watchdog_is_not(tmp_path: Path) -> None:
    """The panel's own query, while Prometheus evaluates our rules: in production alone the outbox grows for long."""
    [panel] = [one for dashboard in DASHBOARDS for one in dashboard.panels if one.title == "Firing now"]
    [query] = panel.queries
    asked = [
        {"expr": query.expr, "eval_time": "5m", "exp_samples": []},
        {"expr": query.expr, "eval_time": "6m", "exp_samples": [{"labels": _SHOWN, "value": 1}]},
    ]
    fed = [
        {"series": f'{metric}, instance="g", namespace="{namespace}"}}', "values": values}
        for namespace, outbox in (("production", "0 500x9"), ("staging", "0x5 500x4"))
        for metric, values in (
            ('imprimatur_build_info{service="serve"', "1x9"),
            ('imprimatur_oldest_due_job_age_seconds{priority="high"', "0x9"),
            ('imprimatur_outbox_messages{job="g"', outbox),
        )
    ]
    tests = [{"interval": "1m", "input_series": fed, "promql_expr_test": asked}]
    found = {"rule_files": [str(path) for path in rulebook.RULES], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "panel.test.yaml").write_text(yaml.safe_dump(found))
    promtool("test", "rules", tmp_path / "panel.test.yaml")


_SHOWN = '{alertname="ImprimaturOutboxGrowing", namespace="production", severity="critical"}'


def failures(folder: Path, what: str) -> set[str]:
    """What promtool names where it says that the tests in a folder fail."""
    tests = map(str, sorted(folder.glob("*.test.yaml")))
    command = [str(programs.prometheus().bin / "promtool"), "test", "rules", *tests]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "FAILED" in done.stderr + done.stdout
    return set(re.findall(what, done.stderr + done.stdout))


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tried_firing_and_silent(alert: Alert) -> None:
    assert rulebook.cases_of(alert, firing=True), "no test sees it fire"
    assert rulebook.cases_of(alert, firing=False) or alert.severity == "none", "no test sees it silent"


@pytest.mark.parametrize("file", [*(path.name for path in rulebook.TESTS), "boundaries"])
def test_a_test_feeds_what_some_process_exports_and_nothing_else(file: str) -> None:
    fed = [*rulebook.fed(), *(("boundaries", one) for boundary in BOUNDARIES for one in boundary.series)]
    series = [one for where, one in fed if where == file]
    assert series
    assert {one: promql.made_up(one) for one in series if promql.made_up(one)} == {}


@pytest.mark.parametrize(
    ("series", "fault"),
    [
        ('imprimatur_jobs_lost_total{instance="a"}', "nobody exports imprimatur_jobs_lost_total"),
        ('imprimatur_open_streams{instance="a"}', "imprimatur_open_streams has the labels ['rpc'] too"),
        ('imprimatur_open_streams{rpc="WatchJob", tenant="t"}', "imprimatur_open_streams has no label tenant"),
        (
            'imprimatur_background_failures_total{loop="dispatch"}',
            'imprimatur_background_failures_total never has loop="dispatch"',
        ),
        ('imprimatur_claims_total{result="lost"}', 'imprimatur_claims_total never has result="lost"'),
        (
            'imprimatur_webhook_lag_seconds_bucket{le="90.0"}',
            "imprimatur_webhook_lag_seconds_bucket has no bucket ['90.0']",
        ),
    ],
)
def test_a_series_that_nobody_exports_is_found(series: str, fault: str) -> None:
    assert promql.made_up(series) == [fault]


def test_the_watchdog_alone_fires_always() -> None:
    assert [(one.name, one.expr, one.for_) for one in rulebook.alerts() if one.severity == "none"] == [
        (WATCHDOG, "vector(1)", "0s")
    ]


def test_every_test_is_of_an_alert_that_there_is() -> None:
    assert {case.alert for case in rulebook.cases()} == {alert.name for alert in rulebook.alerts()}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_is_wrong_and_where_to_read_on(alert: Alert) -> None:
    assert alert.severity in {"critical", "warning"} or alert.name == WATCHDOG
    assert set(alert.annotations) == {"summary", "description", "runbook_url"}
    assert alert.annotations["description"].endswith(".")
    assert alert.runbook.is_file()
    assert alert.runbook.stem == alert.name
    one_of_several = {"service", "priority", "queue", "loop", "rpc", "instance", "provider"}
    assert set(re.findall(r"\$labels\.(\w+)", alert.annotations["description"])) <= one_of_several | {"job"}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_speaks_of_what_is_exported(alert: Alert) -> None:
    assert promql.selectors(alert.expr) or alert.name == WATCHDOG
    assert not promql.faults(alert.expr)


@pytest.mark.parametrize("recording", RECORDINGS)
def test_a_recording_speaks_of_what_is_exported(recording: Recording) -> None:
    assert promql.selectors(recording.expr)
    assert not promql.faults(recording.expr)


@pytest.mark.parametrize("alert", ALERTS)
def test_a_ratio_alone_wakes_nobody(alert: Alert) -> None:
    """One failure among two calls is half of them."""
    if "rate(" in alert.expr and "/" in alert.expr:
        assert re.search(r"(increase|errors:increase)\S*.* >= \d+", alert.expr), "how many failures does it take?"


def test_what_is_generated_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["deploy.prometheus", "--check"])
    assert writing.main() == 0


def test_what_is_not_current_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slo, rule, page = (tmp_path / name for name in ("slo.yaml", "rule.yaml", "monitoring.md"))
    page.write_text(writing.PAGE.read_text().replace("| critical |", "| warning |"))
    for name, value in {"SLO": slo, "RULE": rule, "PAGE": page}.items():
        monkeypatch.setattr(writing, name, value)
    monkeypatch.setattr("sys.argv", ["deploy.prometheus", "--check"])
    assert writing.main() == 1
    assert re.findall(r"current: \S*/(\S+);", capsys.readouterr().err) == ["slo.yaml", "rule.yaml", "monitoring.md"]
    monkeypatch.setattr("sys.argv", ["deploy.prometheus"])
    assert writing.main() == 0
    assert slo.read_text() == (rulebook.FOLDER / "rules" / "slo.yaml").read_text()
    assert "| critical |" in page.read_text()


def test_the_resource_for_kubernetes_has_the_same_groups() -> None:
    resource = yaml.safe_load(writing.RULE.read_text())
    assert (resource["apiVersion"], resource["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    groups = [group for path in rulebook.RULES for group in yaml.safe_load(path.read_text())["groups"]]
    assert resource["spec"]["groups"] == groups
    assert yaml.safe_load((rulebook.FOLDER / "kustomization.yaml").read_text())["resources"] == [writing.RULE.name]


def test_the_table_of_alerts_can_be_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["deploy.prometheus", "--table"])
    assert writing.main() == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == len(rulebook.alerts())
    assert all(len(re.split(r"(?<!\\)\|", row)) == 8 for row in rows)
