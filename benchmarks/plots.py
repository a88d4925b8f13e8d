"""The plots of docs/performance.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot

from benchmarks.report import PEERS, processes_of

_SYSTEMS = ("imprimatur", *PEERS)
_SWEEP = (1, 16, 100)
_SIZE = (8, 4)


def draw(figures: Mapping[str, Any], folder: Path) -> None:
    """Draw what has been measured."""
    mpl.use("Agg")
    folder.mkdir(exist_ok=True)
    if any(key.startswith("celery_100_") for key in figures):
        _end_to_end(figures, folder / "end-to-end.png")
        _cpu(figures, folder / "cpu.png")
    if "endurance_jobs" in figures:
        _memory(figures, folder / "memory.png")


def _end_to_end(figures: Mapping[str, Any], path: Path) -> None:
    plot, axes = pyplot.subplots(figsize=_SIZE)
    width = 0.8 / len(_SYSTEMS)
    for place, name in enumerate(_SYSTEMS):
        middles = [number + (place - 1.5) * width for number in range(len(_SWEEP))]
        medians = [figures.get(f"{name}_{one}_end_to_end_jobs_per_s", 0) for one in _SWEEP]
        axes.bar(middles, medians, width, label=name)
        for middle, one in zip(middles, _SWEEP, strict=True):
            rounds = figures.get(f"{name}_{one}_end_to_end_jobs_per_s_by_round", [])
            axes.plot([middle] * len(rounds), rounds, "k.", markersize=3)
    axes.set_xticks(range(len(_SWEEP)), [f"{one} in flight" for one in _SWEEP])
    axes.set_ylabel("jobs/s from submit to end")
    axes.set_title("End to end: median (bar) and every round (points)")
    axes.legend()
    _save(plot, path)


def _cpu(figures: Mapping[str, Any], path: Path) -> None:
    plot, axes = pyplot.subplots(figsize=_SIZE)
    spent = {name: processes_of(figures, name) for name in _SYSTEMS}
    left = dict.fromkeys(_SYSTEMS, 0.0)
    for process in dict.fromkeys(process for one in spent.values() for process in one):
        values = [spent[name].get(process, 0.0) for name in _SYSTEMS]
        axes.barh(_SYSTEMS, values, left=list(left.values()), label=process)
        left = {name: left[name] + value for name, value in zip(_SYSTEMS, values, strict=True)}
    axes.invert_yaxis()
    axes.set_xlabel("processor ms a job, 100 in flight")
    axes.legend()
    _save(plot, path)


def _memory(figures: Mapping[str, Any], path: Path) -> None:
    plot, axes = pyplot.subplots(figsize=_SIZE)
    for key, points in figures.items():
        if key.startswith("endurance_") and key.endswith("_mb"):
            axes.plot(
                [at / 60 for at, _ in points], [mb for _, mb in points], label=key.removeprefix("endurance_")[:-3]
            )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes at full load")
    axes.set_ylabel("MB")
    axes.legend()
    _save(plot, path)


def _save(plot: Any, path: Path) -> None:
    plot.tight_layout()
    plot.savefig(path, dpi=100, metadata={"Software": None})
    pyplot.close(plot)
