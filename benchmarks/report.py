"""What came out: benchmarks/results.json with flat keys, the tables and plots of docs/performance.md made from it."""

import functools
import json
import operator
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
_BEGIN = "<!-- tables and plots: written by `make bench` from benchmarks/results.json -->\n"
_END = "<!-- end of what is written -->\n"

_NAMES = {
    "imprimatur": "Imprimatur",
    "celery": "Celery",
    "procrastinate": "procrastinate",
    "handwritten": "hand-written",
    "embedded": "`imprimatur serve`",
}
PEERS = ("celery", "procrastinate", "handwritten")
_SWEEP = (1, 16, 100)
#: What is to be reached: key, what it is, the sign and the bound.
TARGETS = (
    ("end_to_end_vs_celery", "end to end, times Celery, 100 in flight", "≥", 4.0),
    ("end_to_end_vs_procrastinate", "end to end, times procrastinate, 100 in flight", "≥", 3.0),
    ("end_to_end_vs_handwritten", "end to end, times the hand-written one, 100 in flight", "≥", 0.9),
    ("submit_to_start_p50_ms", "submit to start at 20/s, p50, ms", "<", 10.0),
    ("batch_submit_jobs_per_s", "BatchSubmit, accepted jobs/s", "≥", 4000.0),
    ("stream_fanout_all_s", "100 jobs with 100 watchers each end at once: all know of it, s", "<", 5.0),
    ("stream_fanout_p99_s", "the same, a job's end to each of its watchers, p99, s", "<", 1.0),
    ("stream_kb_each", "gateway memory for each of 10,000 streams, kB", "<", 30.0),
    ("fairness_start_vs_bound", "a single job behind 20,000 of another tenant, p99, to the bound*", "≤", 1.0),
    ("growth_end_to_end_jobs_per_s_vs_empty", "jobs/s with a long history, times an empty one's", "≥", 0.9),
    ("growth_submits_per_s_vs_empty", "submits/s with a long history, times an empty one's", "≥", 0.9),
    ("growth_batch_submit_jobs_per_s_vs_empty", "jobs/s by BatchSubmit, likewise", "≥", 0.9),
    ("growth_submit_p50_ms_vs_empty", "submit at 20/s, p50, likewise", "≤", 1.11),
    ("growth_submit_to_start_p50_ms_vs_empty", "submit to start at 20/s, p50, likewise", "≤", 1.11),
    ("growth_stream_end_p50_ms_vs_empty", "a job's end to its watcher, p50, likewise", "≤", 1.11),
)
_BOUND = "\\* twice the start with nothing queued, and the time of one job\n"

_CALM = ("light_submit_p50", "light_submit_p99", "submit_to_start_p50", "submit_to_start_p99")

Figures = Mapping[str, Any]


# --- results.json --------------------------------------------------------------------------------------------


def keep(part: str, figures: Figures, *, load_before: float) -> None:
    """Put these into results.json, in the place of earlier ones, with when and where they were measured."""
    known = read()
    measured = {
        f"measured_{part}_on": datetime.now(UTC).date().isoformat(),
        f"measured_{part}_at_commit": commit(),
        f"measured_{part}_load_average": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "cpus": os.cpu_count(),
        "machine": f"{os.cpu_count()} CPUs, Python {platform.python_version()}, {platform.platform()}",
    }
    merged = {**known, **figures, **measured}
    if "imprimatur_submit_to_start_p50_ms" in merged:
        merged["submit_to_start_p50_ms"] = merged["imprimatur_submit_to_start_p50_ms"]
    RESULTS.write_text(json.dumps(merged, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read() -> dict[str, Any]:
    """What is kept."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    return found


@functools.cache
def commit() -> str:
    """What was measured; "-dirty" when tracked files differ."""
    words = ["git", "-C", str(PAGE.parent), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


# --- tables --------------------------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def verdict(value: float | None, sign: str, bound: float) -> str:
    """Whether a target is reached."""
    if value is None:
        return "not measured"
    return "reached" if _REACHES[sign](value, bound) else "missed"


_REACHES: Mapping[str, Callable[[float, float], bool]] = {"≥": operator.ge, "≤": operator.le, "<": operator.lt}


def targets(figures: Figures) -> str:
    """Each target beside what was measured."""
    rows = [
        [what, shown(figures.get(key)), f"{sign} {bound:g}", verdict(figures.get(key), sign, bound)]
        for key, what, sign, bound in TARGETS
    ]
    return f"{table(['', 'measured', 'target', ''], rows)}\n{_BOUND}"


def peers(figures: Figures) -> str:
    """Every system at each number of submits in flight."""
    heads = ["", "in flight", "submits/s", "end to end jobs/s", "submit p50 ms", "submit p99 ms", "CPU ms a job"]
    columns = ("submits_per_s", "end_to_end_jobs_per_s", "submit_p50_ms", "submit_p99_ms", "cpu_ms_per_job")
    rows = [
        [_NAMES[name], in_flight, *(shown(figures.get(f"{name}_{in_flight}_{column}")) for column in columns)]
        for in_flight in _SWEEP
        for name in _NAMES
        if f"{name}_{in_flight}_cpu_ms_per_job" in figures
    ]
    return table(heads, rows)


def ratios(figures: Figures) -> str:
    """Ours to each peer, and submit to start."""
    heads = ["Imprimatur to", *(f"end to end, {one} in flight" for one in _SWEEP), "submits/s, 100", "CPU a job, 100"]
    rows = []
    for peer in PEERS:
        keys = [f"end_to_end_vs_{peer}{'' if one == 100 else f'_{one}_in_flight'}" for one in _SWEEP]
        keys += [f"submit_vs_{peer}", f"cpu_vs_{peer}"]
        rows.append([_NAMES[peer], *(_times(figures.get(key)) for key in keys)])
    return table(heads, rows)


def starts(figures: Figures) -> str:
    """Submit to start at light load."""
    rows = [
        [label, *(shown(figures.get(f"{name}_{what}_ms")) for what in _CALM)]
        for name, label in _NAMES.items()
        if f"{name}_submit_to_start_p50_ms" in figures
    ]
    return table(["at 20 submits/s", "submit p50 ms", "p99 ms", "submit to start p50 ms", "p99 ms"], rows)


def cpu(figures: Figures) -> str:
    """Where a job's processor time goes."""
    rows = []
    for name, label in _NAMES.items():
        spent = processes_of(figures, name)
        parts = ", ".join(f"{process} {ms:.2f}" for process, ms in spent.items())
        if spent:
            rows.append([label, f"{sum(spent.values()):.2f}", parts])
    return table(["CPU ms a job, 100 in flight", "all", "by process"], rows)


def processes_of(figures: Figures, name: str) -> dict[str, float]:
    """CPU milliseconds a job of each process of a system, at 100 in flight."""
    head = f"{name}_100_cpu_ms_per_job_"
    return {key.removeprefix(head): value for key, value in figures.items() if key.startswith(head)}


def named(figures: Figures, wanted: Mapping[str, str]) -> str:
    """Single figures, each with its words."""
    return table(["", "measured"], [[words, shown(figures.get(key))] for key, words in wanted.items()])


def settings(figures: Figures) -> str:
    """What each ran with."""
    lines = [
        f"- {label}: {figures[f'settings_{name}']}" for name, label in _NAMES.items() if f"settings_{name}" in figures
    ]
    servers = [f"{key} {value}" for key, value in figures.items() if key.startswith(("postgresql ", "rabbitmq "))]
    return "\n".join([*lines, f"- servers: {', '.join(servers)}"]) + "\n"


def measured(figures: Figures) -> str:
    """When, at which commit, and how busy the machine was."""
    parts = [key.removeprefix("measured_").removesuffix("_on") for key in figures if key.endswith("_on")]
    rows = [
        [part, *(figures[f"measured_{part}_{what}"] for what in ("on", "at_commit")), _load(figures, part)]
        for part in sorted(parts)
    ]
    return f"{figures.get('machine', '')}\n\n" + table(["", "day (UTC)", "commit", "load average before, after"], rows)


def busy(figures: Figures) -> str:
    """A warning where the machine did much else meanwhile. The load is that before a part began."""
    loads = [value[0] for key, value in figures.items() if key.endswith("_load_average")]
    cpus = figures.get("cpus", 0)
    if not loads or max(loads) <= cpus:
        return ""
    return (
        f"**The machine was busy with other work** while this was measured: a load average of up to {max(loads):.0f} "
        f"on {cpus} CPUs before a part began. Hold to the ratios and to CPU a job: times and rates are far from "
        "what an idle machine gives.\n\n"
    )


def _load(figures: Figures, part: str) -> str:
    return ", ".join(map(str, figures[f"measured_{part}_load_average"]))


def shown(value: Any) -> str:
    """A figure as it is read; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, float) and value >= 100:
        return f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if isinstance(value, float) else str(value)


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def ratio_lines(figures: Figures) -> list[str]:
    """For a terminal."""
    lines = []
    for peer in PEERS:
        lines.append(
            f"to {_NAMES[peer]:13}: end to end {_times(figures.get(f'end_to_end_vs_{peer}'))}, "
            f"submits {_times(figures.get(f'submit_vs_{peer}'))}, CPU a job {_times(figures.get(f'cpu_vs_{peer}'))}"
        )
    for name, label in _NAMES.items():
        if f"{name}_100_end_to_end_jobs_per_s" in figures:
            lines.append(
                f"{label:13}: {figures[f'{name}_100_end_to_end_jobs_per_s']:.0f} jobs/s end to end, "
                f"{figures[f'{name}_100_submits_per_s']:.0f} submits/s, "
                f"submit to start p50 {figures[f'{name}_submit_to_start_p50_ms']:.1f} ms, "
                f"{figures[f'{name}_100_cpu_ms_per_job']:.2f} CPU ms a job"
            )
    return lines


# --- the page ------------------------------------------------------------------------------------------------

_STREAMS = {
    "stream_end_p50_ms": "a job's end to its watcher at 20 jobs/s, p50, ms",
    "streams": "streams in one gateway process",
    "stream_open_s": "to open them all, s",
    "stream_open_per_s": "opened per second",
    "stream_first_answer_p50_ms": "a stream's first answer, 400 being opened at a time, p50, ms",
    "stream_open_cpu_ms": "gateway CPU to open one, ms",
    "stream_fanout_cpu_ms": "gateway CPU to tell one of RUNNING and of the end, ms",
    "stream_fanout_clients_cpu_ms": "the clients' CPU to hear of both, ms",
    "stream_kb_each": "gateway memory per stream, kB",
    "stream_fanout_p50_s": "a job's end to its watchers, p50, s",
    "stream_fanout_p99_s": "the same, p99, s",
    "stream_fanout_all_s": "from the first job's end until all 10,000 streams have ended, s",
}
_FLOOR = {
    "floor_call_server_cpu_ms": "a call, 100 in flight: CPU of the server, ms",
    "floor_call_client_cpu_ms": "the same of the client, ms",
    "floor_calls_per_s": "such calls per second",
    "floor_stream_server_cpu_ms": "two messages and the end for each of 10,000 streams: CPU of the server, ms",
    "floor_stream_client_cpu_ms": "the same of the two clients, ms",
    "floor_stream_p50_s": "until a stream has ended, p50, s",
    "floor_stream_p99_s": "the same, p99, s",
}
_FAIRNESS = {
    "fairness_alone_start_p50_s": "start of a tenant's single job with nothing queued, p50, s",
    "fairness_backlog_jobs": "jobs of another tenant, queued before",
    "fairness_start_p50_s": "start of a tenant's single job behind them, p50 of 50, s",
    "fairness_start_p99_s": "the same, p99 of 50, s (30: not started by then)",
    "fairness_started_share": "share of the 50 that started within 30 s",
    "fairness_many_tenants": "other tenants with a queue each, beside 32 slots",
    "fairness_many_tenants_start_p50_s": "start of a tenant's single job beside them, p50 of 50, s",
    "fairness_many_tenants_start_p99_s": "the same, p99 of 50, s",
    "low_share_percent": "LOW jobs among those started while HIGH fills all slots, %",
}
_BATCHES = {
    "batch_submit_jobs_per_s": "accepted jobs/s, batches of 1,000, 4 in flight",
    "batch_submit_alone_jobs_per_s": "the same while no reviewer works",
    "batch_submit_p50_ms": "one batch, p50, ms",
    "batch_submit_gateway_cpu_ms_per_job": "gateway CPU an accepted job, ms",
    "batch_submit_postgresql_cpu_ms_per_job": "PostgreSQL CPU an accepted job, the reviewer's work included, ms",
}


def growth(figures: Figures) -> str:
    """The grown installation's figures and ratios."""
    names = {
        "end_to_end_jobs_per_s": "end to end jobs/s, 100 in flight",
        "submits_per_s": "submits/s, 100 in flight",
        "batch_submit_jobs_per_s": "accepted jobs/s, batches of 1,000, 2 in flight",
        "cpu_ms_per_job": "CPU ms a job",
        "submit_p50_ms": "submit at 20/s, p50, ms",
        "submit_to_start_p50_ms": "submit to start at 20/s, p50, ms",
        "stream_end_p50_ms": "a job's end to its watcher at 20 jobs/s, p50, ms",
    }
    rows = [
        [label, shown(figures.get(f"growth_{name}")), _times(figures.get(f"growth_{name}_vs_empty"))]
        for name, label in names.items()
    ]
    finished, waiting = (shown(figures.get(f"growth_{which}_jobs")) for which in ("finished", "waiting"))
    return table([f"{finished} finished, {waiting} waiting", "measured", "to an empty one"], rows)


def endurance(figures: Figures) -> str:
    """Memory over ten minutes."""
    tail = "_mb_per_hour"
    names = [key.removeprefix("endurance_").removesuffix(tail) for key in figures if key.endswith(tail)]
    rows = [
        [name, shown(figures[f"endurance_{name}_mb"][-1][1]), shown(figures[f"endurance_{name}{tail}"])]
        for name in names
    ]
    return (
        f"{shown(figures.get('endurance_jobs'))} jobs in {shown(figures.get('endurance_minutes'))} minutes; "
        f"{shown(figures.get('endurance_first_jobs_per_s'))} jobs/s in the first round, "
        f"{shown(figures.get('endurance_last_jobs_per_s'))} in the last.\n\n"
        + table(["process", "MB at the end", "slope after two minutes, MB/h"], rows)
    )


def written(figures: Figures) -> str:
    """Everything between the marks."""
    sections = {
        "Targets": targets(figures),
        "Beside the peers": "\n".join([ratios(figures), _plot("end-to-end", "jobs per second"), peers(figures)]),
        "At light load": starts(figures),
        "Where the time goes": f"{cpu(figures)}\n{_plot('cpu', 'CPU per job by process')}",
        "Batches": named(figures, _BATCHES),
        "Streams": named(figures, _STREAMS),
        "An empty gRPC service": named(figures, _FLOOR),
        "Growth": growth(figures),
        "Fairness": named(figures, _FAIRNESS),
        "Ten minutes at full load": f"{endurance(figures)}\n{_plot('memory', 'memory by process')}",
        "What ran, with which settings": settings(figures),
        "When and where": measured(figures),
    }
    return busy(figures) + "\n".join(f"## {title}\n\n{text}" for title, text in sections.items())


def page(text: str, figures: Figures) -> str:
    """The page with its tables renewed; what people wrote around them stays."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{written(figures)}\n{_END}{after}"


def _plot(name: str, words: str) -> str:
    return f"![{words}](performance/{name}.png)\n" if (PAGE.parent / "performance" / f"{name}.png").exists() else ""


def write() -> None:
    """Plots, then the page."""
    from benchmarks import plots  # with matplotlib, of the extra `bench`

    figures = read()
    plots.draw(figures, PAGE.parent / "performance")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")
