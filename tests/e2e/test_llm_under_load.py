"""The llm engine under load in three processes: what a provider sees and is paid, and what its outage costs."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from imprimatur.client import Client
from imprimatur.v1.creative_pb2 import DECISION_APPROVED, POLICY_TRIGGER_ENGINE_ERROR, Creative
from imprimatur.v1.job_pb2 import ATTEMPT_OUTCOME_SUCCEEDED, JOB_STATE_AWAITING_REVIEW, JOB_STATE_SUCCEEDED, Job
from imprimatur.v1.job_service_pb2 import JobFilter, TypeStats
from tests.contract.polling import eventually
from tests.e2e import jobs
from tests.e2e.processes import Service, Trio, scrape
from tests.makers import until
from tests.patience import happens
from tests.service.provider import INPUT_TOKENS, OUTPUT_TOKENS, Provider, answer, fails, gives, providing

#: What an answer costs at these prices: so many millionths of a dollar.
PRICES = '{"house-model": {"input": 2, "output": 8}}'
COST_MICROS = 2 * INPUT_TOKENS + 8 * OUTPUT_TOKENS
SUBMIT_PAUSE_SECONDS = 0.1


class Desk:
    """Who answers at the provider's, each question after `seconds`; `places` is how many questions it expects at once.

    The first answers go out when so many have come, so that nobody's speed decides whether they come; and none before
    `may_answer`.
    """

    def __init__(self, *, seconds: float, places: int) -> None:
        self.answered: set[str] = set()  #: creatives, by their names
        self.may_answer = asyncio.Event()
        self.most = 0
        self._seconds = seconds
        self._places = places
        self._now = 0
        self._full = asyncio.Event()

    async def play(self, provider: Provider, request: web.Request) -> web.StreamResponse:
        """One question."""
        asked = provider.calls[-1]
        self._now += 1
        self.most = max(self.most, self._now)
        if self._now >= self._places:
            self._full.set()
        try:
            await asyncio.sleep(self._seconds)
            await happens(self._full)
            await happens(self.may_answer)
            given = await gives(answer())(provider, request)
            self.answered.add(asked.creative["name"])
            return given
        finally:
            self._now -= 1


@asynccontextmanager
async def reviewing(trio: Trio, provider: Provider, *, slots: int, **settings: str) -> AsyncIterator[Service]:
    """The one reviewer there is asks that provider."""
    asking = await asyncio.to_thread(
        trio.start,
        "reviewer",
        IMPRIMATUR_ENGINE="llm",
        IMPRIMATUR_LLM_MODEL="house-model",
        IMPRIMATUR_LLM_BASE_URL=provider.base_url,
        IMPRIMATUR_LLM_PRICES=PRICES,
        IMPRIMATUR_REVIEWER_SLOTS=str(slots),
        **settings,
    )
    await asyncio.to_thread(trio.remove, "reviewer", signal.SIGTERM, successor=asking)
    yield asking


def unlike_others(number: int) -> Creative:
    """A creative with a name of its own: of equal ones the provider would be asked once."""
    creative = jobs.plain_creative(number)
    creative.name = creative.creative_id
    return creative


def report(line: str) -> None:
    """Figures, for whoever runs this with --capture=no: they depend on the machine, so nothing rests on them."""
    sys.stdout.write(f"\n{line}\n")


async def spent(client: Client) -> TypeStats:
    [stats] = (await client.stats()).types or [TypeStats()]
    return stats


# --- a batch ---------------------------------------------------------------------------------------------


async def test_a_batch_fills_the_slots_and_is_paid_for_to_the_token(trio: Trio) -> None:
    number, slots = 100, 10
    desk = Desk(seconds=1.0, places=slots)
    async with providing(desk.play) as provider, reviewing(trio, provider, slots=slots), trio.client() as client:
        before = await spent(client)
        began = time.monotonic()
        ids = await jobs.submit_all(client, jobs.requests([unlike_others(one) for one in range(number)], ""))
        accepted_seconds = time.monotonic() - began
        assert not desk.answered, "no submit waits for an answer"
        desk.may_answer.set()
        ended = await jobs.settled(client, ids)
        took_seconds = time.monotonic() - began
        after = await spent(client)
        histories = [(await client.get(job_id)).attempt_history for job_id in ids]
    assert len(set(ids)) == number
    assert {(job.state, job.creative_review.decision) for job in ended.values()} == {
        (JOB_STATE_SUCCEEDED, DECISION_APPROVED)
    }
    assert (len(provider.calls), desk.most) == (number, slots)
    for [attempt] in histories:
        assert attempt.outcome == ATTEMPT_OUTCOME_SUCCEEDED
        booked = (attempt.input_tokens, attempt.output_tokens, attempt.cost_micros)
        assert booked == (INPUT_TOKENS, OUTPUT_TOKENS, COST_MICROS)
    counted = [
        getattr(after, name) - getattr(before, name) for name in ("input_tokens", "output_tokens", "cost_micros")
    ]
    assert counted == [number * INPUT_TOKENS, number * OUTPUT_TOKENS, number * COST_MICROS]
    least_seconds = number / slots
    report(
        f"{number} creatives, {slots} slots, answers after 1 s: accepted in {accepted_seconds:.2f} s, done in"
        f" {took_seconds:.2f} s, {took_seconds / least_seconds:.2f} times the least possible ({least_seconds:g} s)"
    )


# --- an outage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pause_seconds", "outage_seconds"),
    [
        pytest.param(0.2, 0.0, id="until it is left alone twice"),
        pytest.param(10.0, 60.0, id="a minute", marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
async def test_an_outage_approves_nothing_loses_nothing_and_is_made_good(
    trio: Trio, pause_seconds: float, outage_seconds: float
) -> None:
    desk, over = Desk(seconds=0.05, places=1), asyncio.Event()
    desk.may_answer.set()
    labels = {"test": f"an outage of {outage_seconds:g} s"}
    mine = JobFilter(labels=labels)
    waiting = JobFilter(
        labels=labels, states=[JOB_STATE_AWAITING_REVIEW], policy_triggered=[POLICY_TRIGGER_ENGINE_ERROR]
    )
    breaker = {"IMPRIMATUR_LLM_BREAKER_PAUSE_SECONDS": str(pause_seconds), "IMPRIMATUR_LLM_BREAKER_FAILURES": "3"}
    async with (
        providing(desk.play) as provider,
        reviewing(trio, provider, slots=8, **breaker) as reviewer,
        trio.client() as client,
    ):
        submitting = asyncio.create_task(_submit_until(over, client, labels))
        await eventually(lambda: len(desk.answered) >= 10, "answers")
        provider.follow(fails(503))
        away_since = time.monotonic()
        await until(lambda: _left_alone_twice(reviewer, provider))

        async def some_wait_for_a_person() -> bool:
            return bool([job async for job in client.list(waiting)])

        await until(some_wait_for_a_person)
        await asyncio.sleep(max(0.0, away_since + outage_seconds - time.monotonic()))
        assert _approved([job async for job in client.list(mine)]) <= desk.answered
        asked_in_vain = len(provider.calls)
        provider.follow(desk.play)
        over.set()
        ids = await submitting
        settled = await jobs.settled(client, ids)
        assert _approved(settled.values()) <= desk.answered
        sent_back = await client.review_again(waiting)
        ended = await asyncio.gather(*(client.wait(job_id, jobs.SETTLE_SECONDS) for job_id in ids))
        samples = await asyncio.to_thread(scrape, reviewer.http_port)
    assert len(sent_back.job_ids) == sum(job.state == JOB_STATE_AWAITING_REVIEW for job in settled.values()) > 0
    assert {(job.state, job.creative_review.decision) for job in ended} == {(JOB_STATE_SUCCEEDED, DECISION_APPROVED)}
    assert _approved(ended) == desk.answered
    assert samples["imprimatur_provider_circuit_state", _of(provider, circuit="closed")] == 1
    report(
        f"An outage of {time.monotonic() - away_since:.0f} s, its end included: {len(ids)} creatives,"
        f" {asked_in_vain} questions in vain, {len(sent_back.job_ids)} creatives to people and back"
    )


def _of(provider: Provider, **labels: str) -> frozenset[tuple[str, str]]:
    return frozenset({"provider": f"127.0.0.1:{provider.port}", **labels}.items())


async def _submit_until(over: asyncio.Event, client: Client, labels: dict[str, str]) -> list[str]:
    """The ids; of every second job the first failure is the last."""
    ids: list[str] = []
    while not over.is_set():
        creative = unlike_others(len(ids))
        ids.append((await client.submit(creative=creative, labels=labels, max_attempts=1 + len(ids) % 2 * 2)).id)
        await asyncio.sleep(SUBMIT_PAUSE_SECONDS)
    return ids


async def _left_alone_twice(reviewer: Service, provider: Provider) -> bool:
    """It opened, tried in vain, and opened again."""
    samples = await asyncio.to_thread(scrape, reviewer.http_port)
    opened = samples["imprimatur_provider_circuit_openings_total", _of(provider)]
    return opened >= 2 and samples["imprimatur_provider_circuit_state", _of(provider, circuit="open")] == 1


def _approved(seen: Iterable[Job]) -> set[str]:
    return {job.subject_id for job in seen if job.creative_review.decision == DECISION_APPROVED}
