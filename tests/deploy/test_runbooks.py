"""The runbooks: a page for each alert, whose panels, log lines, commands and links exist."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer

from cli.main import app
from deploy.grafana.catalogue import DASHBOARDS
from deploy.prometheus import rulebook
from imprimatur.metrics import ATTEMPT_ERRORS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "runbooks"
PAGES = sorted(FOLDER.glob("*.md"))
PARTS = ["What it means", "What the user feels", "First look", "What to do", "When it is over"]
_FENCE = re.compile(r"^```sh( cluster)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Programs that the pages use besides our own, in either kind of fence.
_OTHERS = {False: {"curl", "rabbitmqctl"}, True: {"kubectl"}}


@cache
def sources() -> str:
    """All code of the services."""
    return "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "services").rglob("*.py"))


@cache
def panels() -> set[str]:
    """Every panel as a page names it."""
    return {f"{dashboard.name}: {panel.title}" for dashboard in DASHBOARDS for panel in dashboard.panels}


def commands(page: Path, *, cluster: bool) -> list[list[str]]:
    """The words of each command in a page's fences."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    lines = [line for kind, text in found if bool(kind) is cluster for line in text.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert {page.stem for page in PAGES} == {alert.name for alert in rulebook.alerts()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_every_part_and_something_in_each(page: Path) -> None:
    first, *parts = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert first.strip() == f"# {page.stem}"
    assert [part.splitlines()[0] for part in parts] == PARTS
    assert all(len(part.split()) > 5 for part in parts)
    assert commands(page, cluster=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_panels_log_lines_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\*(\w+:\s[^*]+)\*", text))
    assert {" ".join(name.split()) for name in named} <= panels()
    assert re.search(r"^- Panel: ", text, re.MULTILINE)
    for line in re.findall(r"^- Log: `([^`]+)`", text, re.MULTILINE):
        assert f'"{line}' in sources(), line
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (FOLDER / link).is_file(), link


def test_what_attempts_fail_with_and_which_loops_fail_is_all_explained() -> None:
    assert set(ATTEMPT_ERRORS) <= words("ImprimaturAttemptsFailing")
    loops = set(re.findall(r"""(?:Loop|Gauges)\("([^"]+)"|loop_failures\.labels\("([^"]+)"\)""", sources()))
    assert {name for pair in loops for name in pair if name} <= words("ImprimaturBackgroundFailing")


def words(alert: str) -> set[str]:
    """Those of a page, with their hyphens and underscores."""
    return set(re.findall(r"[\w-]+", (FOLDER / f"{alert}.md").read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_can_be_typed(page: Path) -> None:
    for words in commands(page, cluster=False):
        if words[0] == "imprimatur":
            parsed(words[1:])
        else:
            assert words[0] in _OTHERS[False], words
    for words in commands(page, cluster=True):
        assert words[0] in _OTHERS[True], words


@pytest.mark.parametrize(
    "words", [["lst"], ["list", "--tenant", "x"], ["list", "--state", "waiting"], ["review", "do"]]
)
def test_a_command_that_does_not_exist_is_found(words: list[str]) -> None:
    with pytest.raises(typer.TyperException):
        parsed(words)


def parsed(words: list[str]) -> None:
    """Have the command's own parser read the words; nothing is done."""
    command = typer.main.get_command(app)
    context = command.make_context("imprimatur", list(words), resilient_parsing=words == ["--version"])
    while isinstance(command, typer.core.TyperGroup) and context._protected_args + context.args:
        name, found, rest = command.resolve_command(context, context._protected_args + context.args)
        assert found is not None
        context = found.make_context(name, rest, parent=context)
        command = found
