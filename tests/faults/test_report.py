"""What a soak leaves is of one run each: rows, their commit and date, the page."""

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from docs import reliability
from tests.faults import report
from tests.faults.audit import Findings
from tests.faults.faults import FAULTS, Fault
from tests.faults.load import Load
from tests.faults.rows import Row
from tests.faults.test_audit import Case
from tests.faults.world import REPOSITORY

_FAULT, _OTHER = FAULTS[:2]


def a_row(*seconds: float, fault: Fault = _FAULT, struck: int = 20, findings: Findings | None = None) -> Row:
    load: Load = Case().load
    return Row.of(fault, struck, load, findings or Findings(), seconds)


def _kept(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["faults"]
    return rows


def test_a_row_says_when_and_at_which_commit_it_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    report.keep(a_row(1.0, struck=19), path)
    (row,) = _kept(path)
    assert row["measured_on"] == datetime.now(UTC).date().isoformat()
    assert row["commit"] == report.commit_at_the_start()
    assert row["struck"] == 19


def test_a_campaign_that_fails_leaves_no_row_and_the_others_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    report.keep(a_row(1.0), path)
    report.keep(a_row(2.0, fault=_OTHER), path)
    report.begin(_FAULT.name, path, injections=20)
    assert [row["fault"] for row in _kept(path)] == [_OTHER.name]


def test_a_row_of_few_strikes_does_not_replace_a_full_one(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    report.keep(a_row(1.0), path)
    report.begin(_FAULT.name, path, injections=2)
    report.keep(a_row(9.0, struck=2), path)
    assert [row["struck"] for row in _kept(path)] == [20]
    report.keep(a_row(3.0), path)
    assert [row["recovery_max_s"] for row in _kept(path)] == [3.0]


def test_rows_stand_in_the_order_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    for fault in (_OTHER, _FAULT):
        report.keep(a_row(1.0, fault=fault), path)
    assert [row["fault"] for row in _kept(path)] == [_FAULT.name, _OTHER.name]


def test_what_was_not_timed_is_null_and_a_dash(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    report.keep(a_row(), path)
    (row,) = _kept(path)
    assert row["recovery_p99_s"] is None
    assert "NaN" not in path.read_text()
    assert "| – / – / – |" in reliability.table([row])


def test_what_a_worker_lost_unstruck_has_a_column_of_its_own() -> None:
    table = report.printed([a_row(1.0, findings=Findings(lost_unstruck=["one", "two"]))])
    head, _line, row = (line.split("|") for line in table.splitlines())
    assert row[head.index(" lost unstruck ")] == " 2 "
    assert row[head.index(" lost ")] == " 0 "


@pytest.mark.parametrize(("bound", "kept"), [(None, True), (5.0, True), (4.9, False)])
def test_the_promised_recovery_is_held_against_the_p99(bound: float | None, kept: bool) -> None:
    assert a_row(0.1, 5.0, 0.2).keeps(bound) is kept


def test_a_recovery_that_nobody_timed_keeps_no_promise() -> None:
    assert not a_row().keeps(5.0)


def test_of_twenty_the_p99_is_the_maximum_and_of_two_hundred_it_is_not() -> None:
    assert a_row(*map(float, range(20))).percentile(0.99) == 19.0
    assert a_row(*map(float, range(200))).percentile(0.99) == 197.0


def test_the_killed_reviewers_recovery_is_promised() -> None:
    assert {fault.name: fault.most_p99_seconds for fault in FAULTS if fault.most_p99_seconds} == {
        "reviewer: kill -9": 5.0
    }


def test_only_faults_between_reviewers_and_the_database_excuse_what_they_lose() -> None:
    assert {fault.name for fault in FAULTS if fault.cuts_off} == {
        "PostgreSQL: kill -9",
        "PostgreSQL: connections exhausted",
        "PostgreSQL: the reply to a commit is lost",
        "network: slow to database and broker",
        "network: database and broker cut",
        "network: half-open to the database",
    }


def test_the_page_names_the_faults_that_have_no_row() -> None:
    first, *others = FAULTS
    assert reliability.missing([{"fault": fault.name} for fault in FAULTS]) == ""
    told = reliability.missing([{"fault": fault.name} for fault in others])
    assert told == f"\nWithout a row yet: {first.name} (strikes in `make test`).\n"


def test_the_page_says_at_which_commits_its_rows_were_measured() -> None:
    commits = {"a": "1", "b": "2", "c": "2"}
    rows = [{"fault": name, "commit": commit, "measured_on": "2026-01-02"} for name, commit in commits.items()]
    assert reliability.measured(rows[:1]) == "All rows were measured at commit `1` on 2026-01-02 (UTC).\n"
    both = reliability.measured(rows)
    assert "- at commit `1` on 2026-01-02: a\n- at commit `2` on 2026-01-02: all others\n" in both


def _git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_a_commit_is_dirty_by_its_own_files_and_not_by_the_report(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("code", "docs/reliability.json"):
        (tmp_path / name).write_text("before")
    _git(tmp_path, "init")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "All")
    clean = report.commit_of(tmp_path)
    (tmp_path / "docs/reliability.json").write_text("after")
    assert report.commit_of(tmp_path) == clean != "unknown"
    (tmp_path / "code").write_text("after")
    assert report.commit_of(tmp_path) == f"{clean}-dirty"


def test_without_git_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert report.commit_of(tmp_path) == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report.commit_of(REPOSITORY) == "unknown"


@pytest.mark.parametrize("status", [0, 1])
def test_make_soak_writes_the_page_and_fails_when_a_test_failed(status: int, tmp_path: Path) -> None:
    for name, script in {"pytest": f"exit {status}", "python": 'echo "$@" > "$(dirname "$0")/asked"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    words = ["make", "--old-file=servers", "soak", f"BIN={tmp_path}"]
    environ = {"PATH": os.environ["PATH"]}
    done = subprocess.run(words, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) is (status != 0), done.stderr
    assert (tmp_path / "asked").read_text() == "-m docs.reliability\n"
