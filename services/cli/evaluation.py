"""`imprimatur evaluate`: the builtin engine on labelled ads of one's own, without a server.

What it measures with is imported when it runs: other commands start fast.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from cli.commands import CommandFailed
from cli.output import Output, note, plain
from imprimatur.errors import InvalidRequest
from imprimatur.policy import Decision, Policy

if TYPE_CHECKING:
    from reviewer.evaluation.evaluation import Evaluation
    from reviewer.evaluation.measures import Share

app = typer.Typer()
_SHOWN_APPROVALS = 20


@app.command(rich_help_panel="Servers")
def evaluate(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Labelled ads, one JSON object a line.")],
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE.json", help="Decide by this policy, not the default one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All figures, and each ad's outcome, as JSON.")] = False,
) -> None:
    """Measure the builtin engine on labelled ads: false approvals, calibration, categories. Needs no server.

    Each line has id, headline, body, cta, label and must_not_approve (docs/evaluation.md).
    """
    from reviewer.engines.builtin import examiner
    from reviewer.evaluation import labelled
    from reviewer.evaluation.evaluation import evaluate as measured

    ads = labelled.read(file)
    if own := [ad.own_label for ad in ads if ad.own_label]:
        names = ", ".join(sorted(set(own)))
        note(f"labels not known here, in {len(own)} of {len(ads)} ads: {names}; must_not_approve alone counts of these")
    found = measured(ads, examiner.examine, _policy(policy))
    Output(as_json=as_json).show(found.document(), lambda: rendered(found))


def _policy(path: Path | None) -> Policy:
    if path is None:
        return Policy()
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CommandFailed(f"{path}: is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise CommandFailed(f"{path}: is no policy: it must hold one JSON object")
    try:
        return Policy.from_document(document)
    except InvalidRequest as error:
        raise CommandFailed(f"{path}: {error}") from error


def rendered(found: "Evaluation") -> RenderableType:
    """For people."""
    summary = _table("FIGURE", "RATE", "COUNT", "95 % INTERVAL")
    for name, share in (
        ("false approvals", found.false_approvals),
        ("benign ads approved", found.benign_approvals),
        ("sent to a person", found.to_a_person),
    ):
        summary.add_row(name, _percent(share.rate), f"{share.count} of {share.total}", _interval(share))
    summary.add_row("calibration error", f"{found.calibration_error:.3f}", "", "")
    wrong = [outcome for outcome in found.outcomes if outcome.approved and outcome.ad.must_not_approve]
    parts: list[RenderableType] = [summary, "", _decisions(found), "", _categories(found)]
    if wrong:
        approved = _table("WRONGLY APPROVED", "SCORE", "NEAREST CATEGORY")
        for outcome in wrong[:_SHOWN_APPROVALS]:
            category, score = outcome.top[0]
            approved.add_row(
                plain(outcome.ad.id), f"{outcome.evidence.approval_score:.2f}", f"{category.value} ({score:.2f})"
            )
        parts += ["", approved]
    return Group(*parts)


def _decisions(found: "Evaluation") -> Table:
    table = _table("LABELLED", *(decision.value.upper() for decision in Decision))
    for kind, counts in found.confusion.items():
        table.add_row(kind.value, *(str(counts[decision]) for decision in Decision))
    return table


def _categories(found: "Evaluation") -> Table:
    table = _table("CATEGORY", "PRECISION", "RECALL", "RIGHT", "FALSE ALARMS", "MISSED")
    for category, each in found.categories.items():
        counts = (each.true_positives, each.false_positives, each.false_negatives)
        if any(counts):
            table.add_row(category.value, _percent(each.precision), _percent(each.recall), *map(str, counts))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=True, justify="left" if number == 0 else "right")
    return table


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{rate * 100:.1f} %"


def _interval(share: "Share") -> str:
    return "" if share.interval is None else " to ".join(_percent(limit) for limit in share.interval)
