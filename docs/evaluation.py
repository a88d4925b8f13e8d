"""Writes the figures and charts of docs/evaluation.md: the builtin engine on the test sets that are never trained on.

`make evaluate` measures (--measure), which takes minutes; else the figures of evaluation.json are put into the page,
or, with --check, compared with it.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs.generated import placed, write_or_compare
from imprimatur.evidence import Category
from imprimatur.policy import Decision

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from reviewer.evaluation.evaluation import Evaluation

FOLDER = Path(__file__).resolve().parent
FIGURES = FOLDER / "evaluation.json"
PAGE = FOLDER / "evaluation.md"
SETS = {
    "test": "Test set",
    "fresh": "Fresh set",
    "sealed": "Sealed set",
}  #: file in services/reviewer/evaluation/data: its name on the page
NEAR = 0.8  #: cosine from which on two ads say about the same
_BEGIN = "<!-- the figures: written by `make evaluate` from evaluation.json -->\n"
_END = "<!-- end of the figures -->\n"


def measured() -> dict[str, Any]:
    """The figures of all sets; draws the charts of the first on the way."""
    from reviewer.engines.builtin import examiner
    from reviewer.evaluation import data, labelled
    from reviewer.evaluation.evaluation import evaluate
    from reviewer.evaluation.nearness import nearness

    figures = {}
    for name in SETS:
        found = evaluate(labelled.read(data.path(name)), examiner.examine)
        near = nearness([outcome.ad.creative for outcome in found.outcomes])
        document = found.document()
        del document["items"], document["policy"]
        document["nearest"] = {
            "median": round(near.quantile(0.5), 2),
            "p95": round(near.quantile(0.95), 2),
            "near": near.above(NEAR),
            "equal": near.equal_texts,
        }
        document["wrongly_approved"] = [o.ad.id for o in found.outcomes if o.approved and o.ad.must_not_approve]
        figures[name] = document
        if name == "test":
            draw(found)
    return figures


def draw(found: "Evaluation") -> None:
    """reliability.png and confusion.png beside the page."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    _draw_reliability(axes, found)
    figure.savefig(FOLDER / "evaluation-reliability.png", dpi=110, metadata={"Software": None})
    figure, axes = plt.subplots(figsize=(9, 8), layout="constrained")
    _draw_confusion(axes, found)
    figure.savefig(FOLDER / "evaluation-confusion.png", dpi=110, metadata={"Software": None})


def _draw_reliability(axes: "Axes", found: "Evaluation") -> None:
    bins = found.bins
    axes.plot([0, 1], [0, 1], linestyle="--", color="grey", label="perfectly calibrated")
    axes.plot([each.mean_score for each in bins], [each.share_true for each in bins], marker="o", color="#1f5fa8")
    for each in bins:
        axes.annotate(
            str(each.count), (each.mean_score, each.share_true), textcoords="offset points", xytext=(6, -12), fontsize=8
        )
    axes.set(
        xlabel="approval score (mean of the bin)",
        ylabel="share that may be approved",
        title=f"Reliability: ECE {found.calibration_error:.3f}; numbers are ads in the bin",
        xlim=(-0.03, 1.06),
        ylim=(-0.05, 1.05),
    )
    axes.legend(loc="upper left")


def _draw_confusion(axes: "Axes", found: "Evaluation") -> None:
    """Labelled category against the one that scored highest, from the policy's detect_min on."""
    names = [str(category) for category in Category] + ["none"]
    counts: Counter[tuple[int, int]] = Counter()
    for outcome in found.outcomes:
        if outcome.ad.categories is not None:
            top, _ = outcome.top[0]
            seen = names.index(top.value) if found.detected(outcome) else len(names) - 1
            for name in [each.value for each in sorted(outcome.ad.categories)] or ["none"]:
                counts[names.index(name), seen] += 1
    grid = [[counts[row, column] for column in range(len(names))] for row in range(len(names))]
    shares = [[count / max(sum(row), 1) for count in row] for row in grid]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in counts:
        axes.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if shares[row][column] > 0.5 else "black",
        )
    axes.set_xticks(range(len(names)), labels=names, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), labels=names, fontsize=8)
    axes.set(xlabel="highest category found", ylabel="label", title="Ads by labelled and by found category")


def written(figures: dict[str, Any]) -> str:
    """The part of the page that is generated."""
    engine = next(iter(figures.values()))["engine"]
    parts = [f"Engine `{engine['name']}` {engine['version']}, default policy.", _summary(figures)]
    test = figures["test"]
    parts += ["Decisions on the test set, by what the ads are:", _decisions(test)]
    parts += ["Categories on the test set, detected from 0.30 on:", _categories(test)]
    parts += ["![Reliability](evaluation-reliability.png)", "![Confusion](evaluation-confusion.png)"]
    return "\n\n".join(parts) + "\n"


def _summary(figures: dict[str, Any]) -> str:
    lines = [f"| | {' | '.join(SETS[name] for name in figures)} |", f"|---|{'---|' * len(figures)}"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in _rows(list(figures.values()))]
    return "\n".join(lines)


def _rows(sets: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    near = [one["nearest"] for one in sets]
    return [
        ("ads", [str(one["count"]) for one in sets]),
        *(
            (name, [_rate(one, key) for one in sets])
            for name, key in (
                ("**false approvals**, of ads that must not be approved", "false_approve"),
                ("**plainly benign ads approved** without a person", "benign_approved"),
                ("benign ads in words that look bad, approved", "benign_hard_approved"),
                ("sent to a person, of all", "to_a_person"),
            )
        ),
        ("**calibration error** (ECE, ten bins)", [f"{one['ece']:.3f}" for one in sets]),
        ("nearest training example, cosine: median, 95 %", [f"{one['median']:.2f}, {one['p95']:.2f}" for one in near]),
        (f"ads nearer than {NEAR} to one; with equal text", [f"{one['near']}; {one['equal']}" for one in near]),
    ]


def _rate(one: dict[str, Any], name: str) -> str:
    if not one[f"{name}_of"]:
        return "–"
    low, high = one[f"{name}_interval"]
    counts = f"{one[f'{name}_count']} of {one[f'{name}_of']}"
    return f"{_percent(one[f'{name}_rate'])} ({counts}; {_percent(low)} to {_percent(high)})"


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{rate * 100:.1f} %"


def _decisions(one: dict[str, Any]) -> str:
    lines = [f"| labelled | {' | '.join(Decision)} |", f"|---|{'---|' * len(Decision)}"]
    for kind, counts in one["decisions"].items():
        lines.append(f"| {kind} | {' | '.join(str(counts[decision]) for decision in Decision)} |")
    return "\n".join(lines)


def _categories(one: dict[str, Any]) -> str:
    lines = ["| category | precision | recall | right | false alarms | missed |", f"|---|{'---|' * 5}"]
    for name, each in one["categories"].items():
        counts = (each["true_positives"], each["false_positives"], each["false_negatives"])
        rates = (_percent(each["precision"]), _percent(each["recall"]))
        lines.append(f"| {name} | {' | '.join((*rates, *map(str, counts)))} |")
    return "\n".join(lines)


def page(figures: dict[str, Any]) -> str:
    """The page with these figures in it."""
    return placed(written(figures), PAGE.read_text(encoding="utf-8"), begin=_BEGIN, end=_END)


def main() -> int:
    """Bring the page to the figures, measured anew with --measure."""
    if "--measure" in sys.argv:
        FIGURES.write_text(json.dumps(measured(), indent=1) + "\n", encoding="utf-8")
    return write_or_compare({PAGE: page(json.loads(FIGURES.read_text(encoding="utf-8")))})


if __name__ == "__main__":
    sys.exit(main())
