"""Rules with one part changed or taken away, each under a name of its own, with the tests of where the rule begins.

All of them are written into a folder as files for promtool: what it does not complain of, no test would notice.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deploy.prometheus import objectives, rulebook
from deploy.prometheus.objectives import Objective
from deploy.prometheus.rulebook import Alert
from tests.deploy.boundaries import BOUNDARIES

UNCHANGED = "nothing"
_THRESHOLD = re.compile(r"(?<=[<>=] )\d+(?:\.\d+)?")
_NAMESPACE = re.compile(r" by \(namespace\)|(?<=by \()namespace, ")
_WINDOWS, _RECORDINGS = (rulebook.FOLDER / "tests" / f"slo_{name}.yaml" for name in ("windows", "recordings"))


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A rule that differs from ours by `what`."""

    what: str
    alert: Alert


def write_alerts(folder: Path) -> dict[str, str]:
    """Write a file of rules and one of tests for each alert; by the name of each mutant, what was changed."""
    named: dict[str, str] = {}
    for number, alert in enumerate(rulebook.alerts()):
        if alert.severity == "none":
            continue
        rules = {f"{alert.name}_{number}_{at}": mutant for at, mutant in enumerate(_mutants(alert))}
        named |= {name: _told(alert, mutant) for name, mutant in rules.items()}
        written = [
            {"alert": name, "expr": one.alert.expr, "for": one.alert.for_, "labels": alert.labels}
            for name, one in rules.items()
        ]
        _write(folder / f"{number}.rules.yaml", {"groups": [{"name": alert.name, "rules": written}]})
        for interval, tests in _tests(alert, list(rules)).items():
            found = {"rule_files": [f"{number}.rules.yaml"], "evaluation_interval": interval, "tests": tests}
            _write(folder / f"{number}.{interval}.test.yaml", found)
    return named


def _told(alert: Alert, mutant: Mutant) -> str:
    return mutant.what if mutant.what == UNCHANGED else f"{alert.name} {alert.labels}: {mutant.what}"


def _mutants(alert: Alert) -> Iterator[Mutant]:
    yield Mutant(what=UNCHANGED, alert=alert)
    held = int(alert.for_[:-1])
    assert alert.for_.endswith("m") or held == 0
    for changed in {held * 2, held // 3, 0} - {held}:
        yield Mutant(what=f"for: {changed}m", alert=replace(alert, for_=f"{changed}m"))
    for what, expr in _changed(alert.expr):
        yield Mutant(what=what, alert=replace(alert, expr=expr))


def _changed(expr: str) -> Iterator[tuple[str, str]]:
    for found in _NAMESPACE.finditer(expr):
        yield _put(expr, found, "")
    for found in _THRESHOLD.finditer(expr):
        number = float(found[0])
        for other in (number * 1.3, number * 0.7) if number else (1.0,):
            yield _put(expr, found, f"{other:g}")
    if "budget_burn" in expr:
        yield from _without_a_window(expr)


def _put(expr: str, found: re.Match[str], other: str) -> tuple[str, str]:
    start, end = found.span()
    return f"{expr[max(0, start - 30) : start]}[{found[0]} -> {other}]", expr[:start] + other + expr[end:]


def _without_a_window(expr: str) -> Iterator[tuple[str, str]]:
    """Without each of the two branches, and without each of a branch's three conditions."""
    one, other = re.findall(r"\(([^()]+)\)", expr)
    for gone, kept in ((one, other), (other, one)):
        yield f"without {gone}", kept
        conditions = re.split(r"\s+and\s+", gone.strip())
        assert len(conditions) == 3
        for condition in conditions:
            rest = " and ".join(part for part in conditions if part != condition)
            yield f"without {condition}", f"({rest}) or ({kept})"


def _tests(alert: Alert, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The tests of a rule, asked of all of its mutants; by how often it has them evaluated."""
    found = {"1m": [boundary.test(alert, names) for boundary in BOUNDARIES if boundary.is_of(alert)]}
    if "budget_burn" in alert.expr:
        windows = _read(_WINDOWS)
        found[windows["evaluation_interval"]] = [_asked_of(test, alert, names) for test in windows["tests"]]
    return found


def _asked_of(test: Mapping[str, Any], alert: Alert, names: list[str]) -> dict[str, Any]:
    asked = [
        {"eval_time": one["eval_time"], "alertname": name, "exp_alerts": _expected(one, alert)}
        for one in test.get("alert_rule_test", ())
        if one["alertname"] == alert.name
        for name in names
    ]
    return {**{key: test[key] for key in ("name", "interval", "input_series")}, "alert_rule_test": asked}


def _expected(asked: Mapping[str, Any], alert: Alert) -> list[dict[str, Any]]:
    labels = [one["exp_labels"] for one in asked["exp_alerts"]]
    return [{"exp_labels": one} for one in labels if alert.labels.items() <= one.items()]


def write_objectives(folder: Path) -> dict[str, str]:
    """Write the recordings of changed objectives and their tests; by the prefix of their names, what was changed."""
    text, named, tests = "groups:\n", {}, []
    [test] = _read(_RECORDINGS)["tests"]
    wanted: list[tuple[str | None, str, tuple[Objective, ...]]] = [(None, UNCHANGED, objectives.OBJECTIVES)]
    wanted += [(one.name, what, (changed,)) for one in objectives.OBJECTIVES for what, changed in _of_objective(one)]
    for number, (slo, what, those) in enumerate(wanted):
        prefix = f"mutant_{number}"
        named[prefix] = what
        for one in those:
            group = "".join(objectives._group(one)).replace("imprimatur:", f"{prefix}:")
            text += group.replace(f"imprimatur-slo-{one.name}", f"{prefix}-{one.name}")
        tests += [_of_slo(asked, prefix, slo) for asked in test["promql_expr_test"]]
    (folder / "rules.yaml").write_text(text)
    found = {"rule_files": ["rules.yaml"], "evaluation_interval": "73h", "tests": [{**test, "promql_expr_test": tests}]}
    _write(folder / "objectives.test.yaml", found)
    return named


def _of_objective(one: Objective) -> Iterator[tuple[str, Objective]]:
    for what in ("failed", "all"):
        for change, expr in _selected(getattr(one, what)):
            yield f"{one.name}, {what}: {change}", replace(one, **{what: expr})
    for factor in (1.3, 0.7):
        changed = f"{float(one.budget) * factor:g}"
        yield f"{one.name}: a budget of {changed}", replace(one, budget=changed)


def _selected(expr: str) -> Iterator[tuple[str, str]]:
    """Without the namespace, without each matcher, and without each alternative of one."""
    for found in _NAMESPACE.finditer(expr):
        yield _put(expr, found, "")
    for found in re.finditer(r'\w+(=~|!=|=)"([^"]*)",? ?', expr):
        yield _put(expr, found, "")
        values = found[2].split("|")
        for value in values if len(values) > 1 else ():
            rest = "|".join(other for other in values if other != value)
            yield _put(expr, found, found[0].replace(found[2], rest))


def _of_slo(asked: Mapping[str, Any], prefix: str, slo: str | None) -> dict[str, Any]:
    samples = [one for one in asked["exp_samples"] if slo is None or f'slo="{slo}"' in one["labels"]]
    return {**asked, "expr": asked["expr"].replace("imprimatur:", f"{prefix}:"), "exp_samples": samples}


@cache
def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))  # which is YAML as well, and read ten times as fast
