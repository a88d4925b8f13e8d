"""The pure parts of the benchmark: its arithmetic, its load, and the page it writes."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from benchmarks import figures, load, report
from benchmarks.figures import Comparison, Round


def a_round(*, jobs: int = 100, seconds: float = 1.0, submit_seconds: float = 1.0, cpu_ms: float = 2.0) -> Round:
    return Round(
        jobs=jobs,
        submit_seconds=submit_seconds,
        end_to_end_seconds=seconds,
        latencies=[0.001, 0.002, 0.003],
        cpu_ms_per_job={"worker": cpu_ms / 2, "postgresql": cpu_ms / 2},
    )


def test_a_percentile_is_one_of_the_values() -> None:
    assert figures.percentile([5, 1, 4, 2, 3], 0.5) == 3
    assert figures.percentile(range(100), 0.99) == 99
    assert figures.percentile([7.0], 0.99) == 7.0


def test_a_slope_is_that_of_the_line_through_the_points() -> None:
    assert figures.slope([(0, 10), (1, 12), (2, 14)]) == pytest.approx(2.0)
    assert figures.slope([(0, 10), (1, 10)]) == 0
    assert figures.slope([(3, 4)]) == 0


def test_a_job_that_has_not_started_waited_the_most() -> None:
    submitted = [("first", 100.0), ("second", 101.0), ("third", 102.0)]
    assert figures.waits(submitted, {"first": 100.5, "second": 190.0}, most=30.0) == [0.5, 30.0, 30.0]


def test_growth_is_told_as_the_median_of_each_cycles_ratio() -> None:
    found = figures.growth({"jobs_per_s": [100, 50, 10]}, {"jobs_per_s": [90, 50, 8]})
    assert found == {"growth_jobs_per_s": 50, "growth_jobs_per_s_vs_empty": 0.9}


def test_a_ratio_is_taken_within_each_cycle_so_that_a_busy_machine_meets_both() -> None:
    seen = Comparison(["imprimatur", "celery"])
    for ours, celerys in ((1.0, 2.0), (10.0, 30.0), (3.0, 3.0)):
        seen.rounds["imprimatur", 100].append(a_round(seconds=ours, cpu_ms=3.0))
        seen.rounds["celery", 100].append(a_round(seconds=celerys, submit_seconds=0.5, cpu_ms=6.0))
    found = seen.figures()
    assert found["end_to_end_vs_celery"] == 2.0, "not 1, which is the ratio of the medians"
    assert found["submit_vs_celery"] == 0.5
    assert found["cpu_vs_celery"] == 0.5
    assert found["celery_100_end_to_end_jobs_per_s"] == pytest.approx(33.333)
    assert found["celery_100_cpu_ms_per_job_postgresql"] == 3.0


def test_only_the_ratio_at_the_most_in_flight_goes_without_their_number() -> None:
    seen = Comparison(["imprimatur", "celery"])
    for name in seen.names:
        for in_flight in (16, load.MOST_IN_FLIGHT):
            seen.rounds[name, in_flight].append(a_round())
    assert {"end_to_end_vs_celery", "end_to_end_vs_celery_16_in_flight"} <= seen.figures().keys()


def test_a_round_is_as_long_as_the_systems_last_one_suggests() -> None:
    seen = Comparison(["imprimatur"])
    seen.rounds["imprimatur", 100].append(a_round(jobs=500, seconds=1.0))
    assert seen.number("imprimatur", 100, 4.0) == 2000
    assert seen.number("imprimatur", 1, 4.0) == 2000, "what is not known yet is guessed by another number in flight"
    seen.rounds["imprimatur", 1].append(a_round(jobs=100, seconds=10.0))
    assert seen.number("imprimatur", 1, 4.0) == 100, "never fewer"


async def test_so_many_submits_are_under_way_and_no_more() -> None:
    under_way, most, numbers = 0, 0, []

    async def submit(number: int) -> str:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        numbers.append(number)
        await asyncio.sleep(0)
        under_way -= 1
        return f"job {number}"

    seen = await load.in_flight(submit, 50, 7)
    assert most == 7
    assert sorted(numbers) == list(range(50))
    assert seen.ids == [f"job {number}" for number in range(50)]
    assert len(seen.latencies) == len(seen.began_at) == 50


async def test_a_submit_at_a_fixed_time_does_not_wait_for_the_answer_to_the_last() -> None:
    all_came = asyncio.Event()
    came: list[int] = []

    async def submit(number: int) -> str:
        came.append(number)
        if len(came) == 3:
            all_came.set()
        await all_came.wait()  # the first is answered only once the last has come
        return str(number)

    async with asyncio.timeout(30):
        seen = await load.per_second(submit, 3, 1000.0)
    assert seen.ids == ["0", "1", "2"]


def test_a_client_that_blocks_has_a_thread_for_each_submit_under_way() -> None:
    together = Barrier(5)  # opens only when five are under way at once

    def submit(number: int) -> str:
        together.wait(timeout=30)
        return str(number)

    with ThreadPoolExecutor(5) as threads:
        seen = load.in_flight_by_threads(submit, 20, 5, threads)
    assert seen.ids == [str(number) for number in range(20)]


def test_what_a_blocking_submit_raises_is_not_lost() -> None:
    def submit(number: int) -> str:
        raise RuntimeError("the broker refused")

    with ThreadPoolExecutor(2) as threads, pytest.raises(RuntimeError, match="the broker refused"):
        load.in_flight_by_threads(submit, 4, 2, threads)


def test_a_payload_has_the_promised_size_and_is_always_the_same() -> None:
    assert len(load.payload().encode()) == load.PAYLOAD_BYTES
    assert load.payload() == load.payload()


def test_a_target_is_reached_missed_or_not_measured() -> None:
    assert report.verdict(4.0, "≥", 4.0) == "reached"
    assert report.verdict(3.9, "≥", 4.0) == "missed"
    assert report.verdict(9.9, "<", 10.0) == "reached"
    assert report.verdict(10.0, "<", 10.0) == "missed"
    assert (report.verdict(1.0, "≤", 1.0), report.verdict(1.01, "≤", 1.0)) == ("reached", "missed")
    assert report.verdict(None, "<", 10.0) == "not measured"


def test_the_page_warns_when_the_machine_did_much_else() -> None:
    quiet = {"cpus": 2, "measured_compare_load_average": [0.4, 2.9]}
    assert report.busy(quiet) == "", "the load at the end is the benchmark's own"
    assert "up to 7 on 2 CPUs" in report.busy({**quiet, "measured_streams_load_average": [7.0, 9.0]})
    assert report.busy({}) == ""


def test_figures_are_shown_as_they_are_read() -> None:
    assert [report.shown(value) for value in (None, 1234.5, 0.123, 10_000, "text")] == [
        "–",
        "1,234",
        "0.12",
        "10,000",
        "text",
    ]


def test_the_page_keeps_what_people_wrote_around_the_tables() -> None:
    text = report.PAGE.read_text(encoding="utf-8")
    renewed = report.page(text, {"end_to_end_vs_celery": 4.2})
    before, after = text.index("<!-- tables"), text.index("<!-- end of")
    assert renewed.startswith(text[:before])
    assert renewed.endswith(text[after:])
    assert "| end to end, times Celery, 100 in flight | 4.20 | ≥ 4 | reached |" in renewed
    assert report.page(renewed, {"end_to_end_vs_celery": 4.2}) == renewed


def test_the_peers_move_nothing_that_the_product_pins() -> None:
    """They are installed into the same .venv."""
    folder = report.PAGE.parents[1]
    product, peers = (_pins((folder / name).read_text()) for name in ("requirements.lock", "bench.lock"))
    assert {name: peers[name] for name in peers.keys() & product.keys()} == {
        name: product[name] for name in peers.keys() & product.keys()
    }
    assert {"celery", "procrastinate", "faststream"} <= peers.keys()


def _pins(lock: str) -> dict[str, list[str]]:
    """The pinned versions of each name; where they differ by Python version, several."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)(?:\[.*\])?==(\S+)", lock, re.MULTILINE):
        found.setdefault(name, []).append(version)
    return found


def test_the_page_is_current() -> None:
    text = report.PAGE.read_text(encoding="utf-8")
    assert report.page(text, report.read()) == text, "run `python -m benchmarks report`"
