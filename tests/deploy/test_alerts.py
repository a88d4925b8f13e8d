"""The alerts and recording rules: read and tried by promtool, each both firing and silent, each with its page."""

import re
import subprocess
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


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tried_firing_and_silent(alert: Alert) -> None:
    assert rulebook.cases_of(alert, firing=True), "no test sees it fire"
    assert rulebook.cases_of(alert, firing=False) or alert.severity == "none", "no test sees it silent"


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
    page, rule = tmp_path / "docs" / "monitoring.md", tmp_path / "rule.yaml"
    page.parent.mkdir()
    page.write_text(writing.PAGE.read_text().replace("| critical |", "| warning |"))
    for name, value in {"PAGE": page, "RULE": rule, "REPOSITORY": tmp_path}.items():
        monkeypatch.setattr(writing, name, value)
    monkeypatch.setattr("sys.argv", ["deploy.prometheus", "--check"])
    assert writing.main() == 1
    assert re.findall(r"current: (\S+);", capsys.readouterr().err) == ["rule.yaml", "docs/monitoring.md"]
    monkeypatch.setattr("sys.argv", ["deploy.prometheus"])
    assert writing.main() == 0
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
