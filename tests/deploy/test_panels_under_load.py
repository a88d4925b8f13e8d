"""Every panel asked of a real Prometheus, after a known load on the three services: the numbers must be the load's."""

import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from deploy.grafana.answers import ask
from deploy.grafana.catalogue import DASHBOARDS
from deploy.grafana.panels import Panel, Query
from deploy.local import stack as stacks
from deploy.local.prometheus import PrivatePrometheus
from deploy.local.stack import Stack
from imprimatur.client import Client
from tests.contract.polling import eventually
from tests.deploy import expected, load
from tests.deploy.expected import EMPTY, QUANTILES, Number, Shown
from tests.deploy.load import Round
from tests.e2e.processes import Receiver, scrape

#: Its setting up alone takes a minute. That panels ask for what there is, tests/deploy/test_dashboards.py sees.
pytestmark = pytest.mark.soak

PANELS = {f"{dashboard.name}: {panel.title}": panel for dashboard in DASHBOARDS for panel in dashboard.panels}
#: Prometheus reckons an increase over a window from the samples in it, and goes on to the window's ends as they went:
#: at one scrape a second and a window of ten or more, a tenth too much at each end.
_EXTRAPOLATED = 0.2


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A Prometheus that has seen two rounds of the load; the window holds the second one alone."""

    prometheus: PrivatePrometheus
    began: float
    addresses: Mapping[str, str]
    rounds: list[Round]
    at: float
    window_seconds: int

    def show(self, query: Query) -> dict[str, float]:
        """The newest number of each series, by its legend, as Grafana asks for it."""
        return ask(self.prometheus, query, window_seconds=self.window_seconds, at=self.at)


@pytest.fixture(scope="module")
def began() -> float:
    """Before anything is started, in seconds of the epoch."""
    return time.time()


@pytest.fixture(scope="module")
def stack(began: float, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The three services; a webhook is tried twice."""
    folder = tmp_path_factory.mktemp("stack")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("IMPRIMATUR_WEBHOOK_RETRY_SECONDS", "[0.1]")
        environment.setenv("IMPRIMATUR_ENGINE_PROCESSES", "1")
        environment.setenv("IMPRIMATUR_REVIEWER_SLOTS", str(expected.SLOTS))
        # A busy machine stops a process for seconds, and that is not what is looked at here.
        environment.setenv("IMPRIMATUR_LEASE_SECONDS", "12")
        try:
            yield stacks.start(folder, die_with_parent=True)
            observers = ["prometheus", "postgresql-exporter"]
            assert stacks.running(folder) == [*stacks.SERVICES, *observers, "rabbitmq", "postgresql"]
        finally:
            stopped = stacks.stop(folder)
    assert stopped[3] == "prometheus"
    assert stacks.running(folder) == []
    assert (folder / "prometheus" / "data").exists()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def observed(stack: Stack, began: float, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Observed]:
    """Two rounds of the load: what is counted for the first time, Prometheus sees only from then on."""
    receiver = Receiver(tmp_path_factory.mktemp("receiver"), stack.webhook_secret)
    try:
        exporter = stacks.export(stack, die_with_parent=True)
        prometheus = stacks.observe(stack, exporter, interval_seconds=1, die_with_parent=True)
        await eventually(lambda: set(prometheus.targets().values()) == {"up"}, "every target")
        async with Client(stack.target, api_key=stack.api_key) as client:
            rounds = [await load.run(client, receiver, stack)]
            await eventually(lambda: _has_cleaned_up(stack), "the first clean-up")
            window_began = await _scraped(prometheus)
            rounds.append(await load.run(client, receiver, stack))
            async with load.watching(client, rounds[-1].scheduled[: load.WATCHES]):
                await eventually(lambda: _gauges_are_current(stack, rounds), "the gauges' next look", seconds=20)
                await eventually(lambda: _queues_are_empty(prometheus), "RabbitMQ's next count", seconds=20)
                at = await _scraped(prometheus)
                yield Observed(
                    prometheus=prometheus,
                    began=began,
                    addresses=_addresses(stack),
                    rounds=rounds,
                    at=at,
                    window_seconds=math.ceil(at - window_began) + 1,  # with a scrape from before the round
                )
    finally:
        receiver.discard()


async def _scraped(prometheus: PrivatePrometheus) -> float:
    """A time, two seconds from now or later, at which what stands now is scraped and reckoned with by the rules."""
    now = time.time()
    seen = ("min(timestamp(up))", "min(timestamp(imprimatur:budget_burn:rate5m))")
    await eventually(lambda: all(prometheus.query(f"{one} > {now + 2}") for one in seen), "more scrapes")
    return time.time()


def _has_cleaned_up(stack: Stack) -> bool:
    samples = scrape(stack.ports["gateway"])
    return any(
        value for (name, _), value in samples.items() if name == "imprimatur_cleanup_last_success_timestamp_seconds"
    )


def _gauges_are_current(stack: Stack, rounds: list[Round]) -> bool:
    samples = scrape(stack.ports["gateway"])
    stands = {"queued": 0.0, "running": 0.0, "awaiting_review": 0.0}
    for (name, labels), value in samples.items():
        if name == "imprimatur_jobs":
            stands[dict(labels)["state"]] += value
    wanted = (sum(len(one.scheduled) for one in rounds), 0, sum(one.waiting for one in rounds))
    return tuple(stands.values()) == wanted


def _queues_are_empty(prometheus: PrivatePrometheus) -> bool:
    return [one.value for one in prometheus.query("sum(rabbitmq_detailed_queue_messages)")] == [0]


def _addresses(stack: Stack) -> dict[str, str]:
    return {
        **{name: f"127.0.0.1:{port}" for name, port in stack.ports.items()},
        "rabbitmq": urlsplit(f"//{stack.rabbitmq_metrics}").netloc,
    }


def test_every_target_is_up_every_rule_is_evaluated_and_nothing_fires_but_the_watchdog(observed: Observed) -> None:
    assert {job for job, _ in observed.prometheus.targets()} == {
        "imprimatur-gateway",
        "imprimatur-reviewer",
        "imprimatur-notifier",
        "rabbitmq",
        "rabbitmq-queues",
        "postgresql",
    }
    assert observed.prometheus.failing_rules() == {}
    assert observed.prometheus.alerts() == [{"alertname": "ImprimaturWatchdog", "severity": "none"}]


def test_the_load_has_something_of_everything(observed: Observed) -> None:
    for done in observed.rounds:
        assert all(done.left[state] for state in ("succeeded", "failed", "cancelled", "awaiting_review"))
        assert {decision for decision, _ in done.decisions} == {"approved", "rejected", "pending"}
        assert done.by_people.total() == 2
        assert done.waiting > 0
    assert observed.window_seconds > 5


@pytest.mark.parametrize("title", [title for title in PANELS if title not in EMPTY])
def test_a_panel_shows_what_happened(observed: Observed, title: str) -> None:
    addresses = observed.addresses
    services = {name: address for name, address in addresses.items() if name != "rabbitmq"}
    last = observed.rounds[-1]
    rates = expected.per_second(last)
    wanted = {
        **expected.standing(observed.rounds, services, addresses["rabbitmq"], began=observed.began, at=observed.at),
        **expected.counted(last, services),
        **rates,
    }[title]
    _compare(PANELS[title], wanted, observed, observed.window_seconds if title in rates else None)


def _compare(panel: Panel, wanted: Shown, observed: Observed, per_seconds: int | None) -> None:
    shown: dict[str, float] = {}
    for query in panel.queries:
        series = observed.show(query)
        assert series, f"no data: {query.expr}"
        shown |= series
    assert all(math.isfinite(value) for value in shown.values()), shown
    quantiles = [shown[legend] for legend in QUANTILES if legend in shown]
    assert quantiles == sorted(quantiles)
    needed = {legend for legend, number in wanted.items() if not (isinstance(number, tuple) and number[0] == 0)}
    assert needed <= set(shown), shown
    for legend, value in shown.items():
        number, slack = (value, 0.0) if per_seconds is None else (value * per_seconds, _EXTRAPOLATED)
        assert _is(number, wanted.get(legend, 0), slack), (legend, number, wanted)


def _is(value: float, wanted: Number, slack: float) -> bool:
    if isinstance(wanted, tuple):
        low, high = wanted
        return low * (1 - slack) <= value <= high * (1 + slack)
    return value == pytest.approx(wanted, rel=_EXTRAPOLATED, abs=1e-9)


@pytest.mark.parametrize("title", EMPTY)
def test_a_panel_that_shows_nothing_here_has_a_reason_still(observed: Observed, title: str) -> None:
    assert [observed.show(query) for query in PANELS[title].queries] == [{} for _ in PANELS[title].queries]
