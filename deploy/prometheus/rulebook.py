"""The recording rules and alerts in rules/, and promtool's tests of them in tests/, as they are read here."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parents[1]
#: In the order in which they are shown: symptoms first.
RULES = tuple(sorted((FOLDER / "rules").glob("*.yaml"), reverse=True))
TESTS = tuple(sorted((FOLDER / "tests").glob("*.yaml")))


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One alerting rule. Rules of one name differ in severity or in a label."""

    name: str
    expr: str
    for_: str
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def severity(self) -> str:
        """critical: now, at any hour; warning: in working hours."""
        return self.labels["severity"]

    @property
    def runbook(self) -> Path:
        """The page that says what to do."""
        return REPOSITORY / self.annotations["runbook_url"]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One recording rule."""

    name: str
    expr: str
    labels: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question of a test: does this alert fire at that time? `expected`: the labels of those that do."""

    file: str
    name: str
    alert: str
    eval_time: str
    expected: tuple[dict[str, str], ...]


def alerts() -> list[Alert]:
    """All alerting rules, in the order of the files."""
    return [
        Alert(
            name=rule["alert"],
            expr=rule["expr"].strip(),
            for_=rule.get("for", "0s"),
            labels=rule["labels"],
            annotations=rule["annotations"],
        )
        for rule in _rules()
        if "alert" in rule
    ]


def recordings() -> list[Recording]:
    """All recording rules, in the order of the files."""
    return [
        Recording(name=rule["record"], expr=rule["expr"].strip(), labels=rule.get("labels", {}))
        for rule in _rules()
        if "record" in rule
    ]


def cases() -> list[Case]:
    """Every question that the tests ask about an alert."""
    return [
        Case(
            file=path.name,
            name=test["name"],
            alert=asked["alertname"],
            eval_time=asked["eval_time"],
            expected=tuple(one["exp_labels"] for one in asked.get("exp_alerts", ())),
        )
        for path in TESTS
        for test in _read(path)["tests"]
        for asked in test.get("alert_rule_test", ())
    ]


def fed() -> list[tuple[str, str]]:
    """Every series that the tests make up, after the name of its file."""
    return [
        (path.name, series["series"])
        for path in TESTS
        for test in _read(path)["tests"]
        for series in test["input_series"]
    ]


def cases_of(alert: Alert, *, firing: bool) -> list[Case]:
    """The questions about this very rule: those where it fires, or those where nothing of its name does."""
    asked = [case for case in cases() if case.alert == alert.name]
    if not firing:
        return [case for case in asked if not case.expected]
    return [case for case in asked if any(alert.labels.items() <= labels.items() for labels in case.expected)]


def _rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in _read(path)["groups"] for rule in group["rules"]]


@cache
def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
