"""The arithmetic of what was measured: medians, ratios, slopes. Nothing is started or asked here."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.load import MOST_IN_FLIGHT

_FEWEST_JOBS, _MOST_JOBS = 100, 20_000
_FIRST_GUESS_PER_SECOND = 40.0


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median(values: Iterable[float]) -> float:
    """To three places."""
    return round(statistics.median(values), 3)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line that fits best (least squares); 0 for fewer than two points."""
    if len(points) < 2:
        return 0.0
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread if spread else 0.0


def waits(submitted: Iterable[tuple[str, float]], started: Mapping[str, float], *, most: float) -> list[float]:
    """How long each job (its id, when it was submitted) waited for its start; `most` also stands for "not yet"."""
    return [min(most, started[job_id] - at) if job_id in started else most for job_id, at in submitted]


def growth(empty: Mapping[str, Sequence[float]], grown: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The grown installation's medians over the cycles, and the medians of each cycle's ratio to the empty one."""
    found = {}
    for name, values in grown.items():
        found[f"growth_{name}"] = round(statistics.median(values), 2)
        found[f"growth_{name}_vs_empty"] = median(a / b for a, b in zip(values, empty[name], strict=True))
    return found


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round showed."""

    jobs: int
    submit_seconds: float
    end_to_end_seconds: float  #: from the first submit until the system's own record shows all jobs ended
    latencies: list[float]
    cpu_ms_per_job: dict[str, float]

    @property
    def submits_per_second(self) -> float:
        """Accepted."""
        return self.jobs / self.submit_seconds

    @property
    def jobs_per_second(self) -> float:
        """From submit to end."""
        return self.jobs / self.end_to_end_seconds

    @property
    def cpu_ms(self) -> float:
        """Processor time a job, of all processes."""
        return sum(self.cpu_ms_per_job.values())


class Comparison:
    """What the cycles showed, by system and submits in flight."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.rounds: dict[tuple[str, int], list[Round]] = defaultdict(list)
        self.starts: dict[str, list[float]] = defaultdict(list)
        self.submits: dict[str, list[float]] = defaultdict(list)

    def number(self, name: str, in_flight: int, seconds: float) -> int:
        """How many jobs end in so many seconds, by the last round."""
        seen = self.rounds[name, in_flight] or [
            one for (of, _), all_of in self.rounds.items() if of == name for one in all_of
        ]
        rate = seen[-1].jobs_per_second if seen else _FIRST_GUESS_PER_SECOND
        return max(_FEWEST_JOBS, min(_MOST_JOBS, int(rate * seconds)))

    def figures(self) -> dict[str, Any]:
        """All of it, under flat names."""
        found: dict[str, Any] = {}
        for name, in_flight in self.rounds:
            found |= _of_rounds(f"{name}_{in_flight}", self.rounds[name, in_flight])
        for what, by_name in (("submit_to_start", self.starts), ("light_submit", self.submits)):
            for name, seconds in by_name.items():
                found[f"{name}_{what}_p50_ms"] = _ms(percentile(seconds, 0.5))
                found[f"{name}_{what}_p99_ms"] = _ms(percentile(seconds, 0.99))
        return found | self._ratios()

    def _ratios(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        ours, *peers = self.names
        for peer in peers:
            for in_flight in {of for _, of in self.rounds}:
                pairs = list(zip(self.rounds[ours, in_flight], self.rounds[peer, in_flight], strict=False))
                suffix = "" if in_flight == MOST_IN_FLIGHT else f"_{in_flight}_in_flight"
                found[f"end_to_end_vs_{peer}{suffix}"] = median(a.jobs_per_second / b.jobs_per_second for a, b in pairs)
                found[f"submit_vs_{peer}{suffix}"] = median(
                    a.submits_per_second / b.submits_per_second for a, b in pairs
                )
                found[f"cpu_vs_{peer}{suffix}"] = median(a.cpu_ms / b.cpu_ms for a, b in pairs)
        return found


def _of_rounds(name: str, rounds: Sequence[Round]) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"{name}_submits_per_s": median(one.submits_per_second for one in rounds),
        f"{name}_end_to_end_jobs_per_s": median(one.jobs_per_second for one in rounds),
        f"{name}_end_to_end_jobs_per_s_by_round": [round(one.jobs_per_second, 1) for one in rounds],
        f"{name}_submit_p50_ms": _ms(statistics.median(percentile(one.latencies, 0.5) for one in rounds)),
        f"{name}_submit_p99_ms": _ms(statistics.median(percentile(one.latencies, 0.99) for one in rounds)),
        f"{name}_cpu_ms_per_job": median(one.cpu_ms for one in rounds),
    }
    for process in rounds[0].cpu_ms_per_job:
        found[f"{name}_cpu_ms_per_job_{process}"] = median(one.cpu_ms_per_job[process] for one in rounds)
    return found


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
