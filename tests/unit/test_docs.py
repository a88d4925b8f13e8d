"""What the pages about the inside say is there: the rows of the decision table, and the files of the architecture."""

import re
from pathlib import Path

from tests.unit.test_policy import TABLE

from imprimatur.evidence import Evidence
from imprimatur.policy import _ROWS, Decision, Trigger, _Case, flaw_of

ROOT = Path(__file__).parents[2]
SERVICES = ROOT / "services"
_NAME = re.compile(r"`([^`]+)`")


def tables(page: str) -> list[list[list[str]]]:
    """The tables of a page as rows of cells, without their heads."""
    found: list[list[list[str]]] = [[]]
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [table[2:] for table in found if table]


def named(cell: str) -> list[str]:
    return _NAME.findall(cell)


# --- docs/decision-table.md ------------------------------------------------------------------------------


def test_the_page_has_the_rows_of_the_decision_table_in_their_order() -> None:
    [rows] = tables("docs/decision-table.md")
    assert [row[0] for row in rows] == [str(number) for number in range(1, len(_ROWS) + 1)]
    assert [trigger for row in rows for trigger in named(row[3])] == list(Trigger)


def test_the_page_says_what_each_row_decides() -> None:
    [rows] = tables("docs/decision-table.md")
    said = {Trigger(trigger): re.split(r"\W", row[2])[0] for row in rows for trigger in named(row[3])}
    assert said == {trigger: str(decision) for decision, trigger in {row.is_ for row in TABLE.values()}}
    assert set(said.values()) == {str(decision) for decision in Decision}


def test_the_code_tries_the_rows_in_the_order_of_the_page() -> None:
    [rows] = tables("docs/decision-table.md")
    place = {Trigger(trigger): number for number, row in enumerate(rows) for trigger in named(row[3])}
    for name, row in TABLE.items():
        case = _Case(policy=row.policy, declared=frozenset(row.declared), found=row.found)
        if not (isinstance(row.found, Evidence) and flaw_of(row.found)):  # `decide` takes it for a failure
            assert next(number for number, tried in enumerate(_ROWS) if tried(case)) == place[row.is_[1]], name


# --- ARCHITECTURE.md -------------------------------------------------------------------------------------


def test_every_place_in_the_life_of_a_job_exists() -> None:
    steps, _ = tables("ARCHITECTURE.md")
    assert len(steps) > 10
    for step in steps:
        found: list[Path] = []
        for name in named(step[2]):
            if name.endswith((".py", "/")):
                found.append(place_of(name, found))
            else:  # a function in the file before it
                assert f"def {name}(" in found[-1].read_text(encoding="utf-8"), name
        assert found, step


def place_of(name: str, before: list[Path]) -> Path:
    """A place as the page shortens it: beside one before it in the cell, in the shared package, or a service."""
    for folder in (*(one.parent for one in before), SERVICES / "imprimatur", SERVICES):
        if (folder / name).exists():
            return folder / name
    raise AssertionError(f"{name} does not exist")


def test_every_test_that_holds_a_promise_exists() -> None:
    _, promises = tables("ARCHITECTURE.md")
    assert len(promises) > 5
    for promise in promises:
        assert named(promise[2]), promise
        for name in named(promise[2]):
            assert (ROOT / name).is_dir() if name.endswith("/") else (ROOT / name).is_file(), (promise[0], name)
