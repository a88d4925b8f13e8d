"""The alerts and recording rules: read and tried by promtool, each both firing and silent, each with its page."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from deploy.local import programs
from deploy.prometheus import __main__ as writing
from deploy.prometheus import rulebook
from deploy.prometheus.rulebook import Alert, Recording
from tests.deploy import promql

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


#: Those about budgets, whose windows have tests of their own.
BUDGETS = [alert for alert in rulebook.alerts() if "budget_burn" in alert.expr]


@pytest.mark.parametrize("severity", ["critical", "warning"])
def test_no_part_of_the_rules_about_budgets_can_go_unnoticed(severity: str, tmp_path: Path) -> None:
    """Each pair of windows is removed in turn, and each condition of each: the tests of the windows must fail."""
    mutated = [alert for alert in BUDGETS if alert.severity == severity]
    assert len(mutated) == 3
    notice(tmp_path, BUDGETS)
    for exprs in zip(*(mutants(alert.expr) for alert in mutated), strict=True):
        rules = [replace(alert, expr=expr) for alert, expr in zip(mutated, exprs, strict=True)]
        with pytest.raises(AssertionError) as noticed:
            notice(tmp_path, [*rules, *(alert for alert in BUDGETS if alert not in mutated)])
        assert all(f"alertname: {alert.name}" in str(noticed.value) for alert in mutated), exprs


def notice(folder: Path, alerts: list[Alert]) -> None:
    """Have promtool test the windows of these rules; what the windows see is given, so no recordings are needed."""
    rules = [
        {"alert": one.name, "expr": one.expr, "for": one.for_, "labels": one.labels, "annotations": one.annotations}
        for one in alerts
    ]
    for name in ("rules", "tests"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "rules" / "slo.yaml").write_text(yaml.safe_dump({"groups": [{"name": "budgets", "rules": rules}]}))
    promtool("test", "rules", shutil.copy(rulebook.FOLDER / "tests" / "slo_windows.yaml", folder / "tests"))


def mutants(expr: str) -> list[str]:
    """The expression without each of its two branches, and without each of a branch's three conditions."""
    one, other = re.findall(r"\(([^()]+)\)", expr)
    found = [one, other]
    for branch, kept in ((one, other), (other, one)):
        conditions = re.split(r"\s+and\s+", branch.strip())
        assert len(conditions) == 3
        for condition in conditions:
            rest = " and ".join(part for part in conditions if part != condition)
            found.append(f"({rest}) or ({kept})")
    return found


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tried_firing_and_silent(alert: Alert) -> None:
    assert rulebook.cases_of(alert, firing=True), "no test sees it fire"
    assert rulebook.cases_of(alert, firing=False) or alert.severity == "none", "no test sees it silent"


@pytest.mark.parametrize("file", [path.name for path in rulebook.TESTS])
def test_a_test_feeds_what_some_process_exports_and_nothing_else(file: str) -> None:
    series = [one for where, one in rulebook.fed() if where == file]
    assert series
    assert {one: promql.made_up(one) for one in series if promql.made_up(one)} == {}


@pytest.mark.parametrize(
    ("series", "fault"),
    [
        ('imprimatur_jobs_lost_total{instance="a"}', "nobody exports imprimatur_jobs_lost_total"),
        ('imprimatur_open_streams{instance="a"}', "imprimatur_open_streams has the labels ['rpc'] too"),
        ('imprimatur_open_streams{rpc="WatchJob", tenant="t"}', "imprimatur_open_streams has no label tenant"),
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
    one_of_several = {"service", "priority", "queue", "loop", "rpc", "instance"}
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
