"""What the pages about the inside say is there: the rows of the decision table, the files of the architecture, and what
`serve` reads."""

import re
from dataclasses import fields
from pathlib import Path

from docs.settings import ServeSettings
from imprimatur.evidence import FORBIDDEN, SENSITIVE, Evidence
from imprimatur.policy import _ROWS, Decision, Policy, Trigger, _Case, flaw_of
from tests.unit.decisions import TABLE

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


def test_the_rows_of_the_page_are_those_of_the_cases_and_of_the_code_in_their_order() -> None:
    [rows] = tables("docs/decision-table.md")
    said = [
        (int(number), Decision(re.split(r"\W", decision)[0]), Trigger(trigger))
        for number, _, decision, triggers in rows
        for trigger in named(triggers)
    ]
    assert [trigger for *_, trigger in said] == list(Trigger)
    assert list(dict.fromkeys(number for number, *_ in said)) == list(range(1, len(_ROWS) + 1))
    assert set(said) == {(case.row, *case.is_) for case in TABLE.values()}


def test_the_code_finds_each_case_in_the_row_that_the_page_names() -> None:
    for name, case in TABLE.items():
        if not (isinstance(case.found, Evidence) and flaw_of(case.found)):  # `decide` takes it for a failure
            asked = _Case(policy=case.policy, declared=frozenset(case.declared), found=case.found)
            assert next(number for number, row in enumerate(_ROWS, start=1) if row(asked)) == case.row, name


def test_the_page_names_every_threshold_with_its_default_and_the_categories_of_the_default_policy() -> None:
    page = (ROOT / "docs/decision-table.md").read_text(encoding="utf-8")
    said = re.findall(r"`(\w+)` \(([\d.]+)\)", page)
    defaults = {(item.name, item.default) for item in fields(Policy) if item.type is float}
    assert {(name, float(value)) for name, value in said} == defaults
    for title, categories in (("Always-human", SENSITIVE), ("Blocked", FORBIDDEN)):
        [listed] = re.findall(rf"{title} by default: ([^.]+)\.", page)
        assert {re.sub(r"\W+", "_", one.strip()) for one in listed.split(",")} == categories


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


# --- docs/settings.md ------------------------------------------------------------------------------------


def test_the_page_says_of_serve_what_its_command_reads() -> None:
    read = re.findall(r"read_settings\((\w+)\)", (SERVICES / "cli/servers.py").read_text(encoding="utf-8"))
    assert sorted(read) == sorted(kind.__name__ for kind in ServeSettings.__bases__)
