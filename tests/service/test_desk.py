"""`imprimatur review` as a person uses it: on a real pseudo-terminal, against a real gateway."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text

from imprimatur.tenancy import Role
from imprimatur.v1.creative_pb2 import DECISION_APPROVED, DECISION_REJECTED
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW as AWAITING
from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED as SUCCEEDED
from imprimatur.v1.job_pb2 import PRIORITY_HIGH, PRIORITY_NORMAL, Job
from imprimatur.v1.review_service_pb2 import ListPendingReviewsRequest
from tests import makers
from tests.service import engines
from tests.service.engines import ScriptedEngine
from tests.service.systems import Caller, System, on_sqlite, submission
from tests.service.terminals import Terminal, on_a_terminal
from tests.service.test_reviewing import kinds

PROMPT = "[q]uit ? "


async def waiting(me: Caller, system: System, *creative_ids: str) -> list[Job]:
    """Jobs that wait for a person, the first of them first."""
    jobs: list[Job] = []
    async with system.reviewer(ScriptedEngine()):
        for place, creative_id in enumerate(creative_ids):
            priority = PRIORITY_NORMAL if place else PRIORITY_HIGH
            job = await me.submit(engines.HUMAN, creative_id, priority=priority)
            jobs.append(await me.until(job, AWAITING))
    return jobs


@asynccontextmanager
async def desk(system: System, *arguments: str, port: int = 0) -> AsyncIterator[Terminal]:
    """Ada at her desk."""
    key = await system.key(Role.REVIEWER, user_id="ada")
    target = f"127.0.0.1:{port or system.port}"
    async with on_a_terminal("review", *arguments, IMPRIMATUR_TARGET=target, IMPRIMATUR_API_KEY=key) as terminal:
        yield terminal


async def claimed(me: Caller) -> dict[str, str]:
    found = await me.reviews.ListPendingReviews(ListPendingReviewsRequest())
    return {one.job.subject_id: one.claimed_by for one in found.reviews}


@on_sqlite
async def test_one_after_the_other_is_decided_with_few_keys(system: System, me: Caller) -> None:
    first, second, third = await waiting(me, system, "cr-1", "cr-2", "cr-3")
    async with desk(system) as terminal:
        shown = await terminal.expect(PROMPT)
        assert "cr-1 · high · 0 of 3" in shown
        assert "waits because  uncertain" in shown
        assert "It was looked at." in shown
        terminal.press("a")
        assert "1 Complies with the policy." in await terminal.expect("why? ")
        terminal.press("1")
        await terminal.expect("approved: Complies with the policy.")
        assert "cr-2" in await terminal.expect(PROMPT)
        assert await claimed(me) == {"cr-1": "ada", "cr-2": "ada", "cr-3": ""}  # not sent yet
        terminal.press("r")
        await terminal.expect("why? ")
        terminal.press("t")
        await terminal.expect("reject, because: ")
        terminal.press("Clxaims\x7f\x7f\x7f\x7f\x7faims too much – é.\r")
        await terminal.expect("rejected: Claims too much – é.")
        assert "cr-3 · normal · 2 of 3" in await terminal.expect(PROMPT)
        terminal.press("q")
        await terminal.expect("2 decided")
        assert await terminal.ended() == 0
    one, two = await me.get(first), await me.get(second)
    assert (one.creative_review.decision, two.creative_review.decision) == (DECISION_APPROVED, DECISION_REJECTED)
    assert two.creative_review.human_review.reason == "Claims too much – é."
    assert two.creative_review.human_review.reviewer == "ada"
    assert await claimed(me) == {"cr-3": ""}  # given back
    assert (await kinds(me, third)).count("released_by_person") == 1


@on_sqlite
async def test_a_decision_can_be_taken_back_until_the_next_one(system: System, me: Caller) -> None:
    [first, second] = await waiting(me, system, "cr-1", "cr-2")
    async with desk(system, "--undo-seconds", "60") as terminal:
        await terminal.expect(PROMPT)
        terminal.press("a")
        await terminal.expect("why? ")
        terminal.press("1")
        assert "cr-2" in await terminal.expect(PROMPT)
        terminal.press("u")
        await terminal.expect("taken back")
        assert "cr-1" in await terminal.expect(PROMPT)
        terminal.press("r")
        await terminal.expect("why? ")
        terminal.press("2")
        assert "cr-2" in await terminal.expect(PROMPT)
        terminal.press("a")
        await terminal.expect("why? ")
        terminal.press("1")  # sends the one before
        await terminal.expect("Nothing that matches waits.")
        await me.until(first, SUCCEEDED)
        terminal.press("u")
        await terminal.expect("taken back")
        await terminal.expect(PROMPT)
        terminal.press("q")
        await terminal.expect("1 decided")
        assert await terminal.ended() == 0
    decided = await me.get(first)
    assert decided.creative_review.decision == DECISION_REJECTED
    assert (await kinds(me, first)).count("decided") == 1
    assert (await me.get(second)).state == AWAITING


@on_sqlite
async def test_what_is_skipped_comes_again_at_the_end_and_what_is_filtered_out_not(system: System, me: Caller) -> None:
    await waiting(me, system, "cr-1", "cr-2")
    async with desk(system) as terminal:
        await terminal.expect(PROMPT)
        terminal.press("s")
        assert "cr-2" in await terminal.expect(PROMPT)
        assert await claimed(me) == {"cr-1": "", "cr-2": "ada"}
        terminal.press("f")
        await terminal.expect("older=2h): ")
        terminal.press("colour=red\r")
        await terminal.expect("'colour=red' is none of")
        await terminal.expect(PROMPT)
        terminal.press("f")
        await terminal.expect("older=2h): ")
        terminal.press("priority=high\r")
        await terminal.expect("1 passed over, nothing else waits.")
        terminal.press("b")
        assert "cr-1" in await terminal.expect(PROMPT)
        terminal.press("h")
        assert "released_by_person" in await terminal.expect(PROMPT)
        terminal.press("q")
        assert await terminal.ended() == 0


@on_sqlite
async def test_what_a_seller_writes_does_not_steer_the_terminal(system: System, me: Caller) -> None:
    evil = "human \x1b]0;owned\x07\x1b[2J\x9b31m\u202efoo"
    request = submission(evil, "cr-\x1b[31mred")
    request.creative_review.creative.landing_page_url = "https://ads.example/\x1b[1A"
    async with system.reviewer(ScriptedEngine()):
        await me.until((await me.jobs.SubmitJob(request)).job, AWAITING)
    async with desk(system) as terminal:
        shown = await terminal.expect(PROMPT)
        assert r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202efoo" in shown
        assert r"https://ads.example/\x1b[1A" in shown
        for steering in ("\x1b]", "\x1b[2J", "\x9b", "\u202e", "\x1b[1A", "\x07"):
            assert steering not in terminal.raw
        terminal.press("q")
        assert await terminal.ended() == 0


@on_sqlite
async def test_a_lost_connection_loses_no_decision_and_makes_none_twice(system: System, me: Caller) -> None:
    [first, second] = await waiting(me, system, "cr-1", "cr-2")
    async with system.gateway(drain_seconds=0.1) as port:
        entered = desk(system, "--undo-seconds", "0", port=port)
        terminal = await entered.__aenter__()
        await terminal.expect(PROMPT)
    try:  # the gateway is gone
        terminal.press("a")
        await terminal.expect("why? ")
        terminal.press("1")
        await terminal.expect("no connection; trying again until there is one")
        async with system.gateway(port=port):
            await terminal.expect("the connection is back")
            assert "cr-2" in await terminal.expect(PROMPT)
            await me.until(first, SUCCEEDED)
            assert (await kinds(me, first)).count("decided") == 1
            terminal.press("q")
            await terminal.expect("1 decided")
            assert await terminal.ended() == 0
    finally:
        await entered.__aexit__(None, None, None)
    assert (await me.get(second)).state == AWAITING


@on_sqlite
async def test_what_somebody_else_took_over_is_not_decided_and_that_is_said(system: System, me: Caller) -> None:
    [job] = await waiting(me, system, "cr-1")
    async with desk(system, "--undo-seconds", "0") as terminal:
        await terminal.expect(PROMPT)
        async with system.database.begin() as tx:
            await tx.connection.execute(text("UPDATE jobs SET held_by = 'bob'"))
        terminal.press("a")
        await terminal.expect("why? ")
        terminal.press("1")
        await terminal.expect("cr-1 was NOT approved: bob is reviewing this one now")
        terminal.press("q")
        assert await terminal.ended() == 0
    assert (await me.get(job)).state == AWAITING


@on_sqlite
async def test_interrupted_it_says_what_it_has_not_sent_and_gives_back_what_it_holds(
    system: System, me: Caller
) -> None:
    await waiting(me, system, "cr-1", "cr-2")
    async with desk(system, "--undo-seconds", "60") as terminal:
        await terminal.expect(PROMPT)
        terminal.press("a")
        await terminal.expect("why? ")
        terminal.press("1")
        await terminal.expect(PROMPT)
        terminal.process.send_signal(signal.SIGINT)
        await terminal.expect("NOT sent: ")
        assert await terminal.ended() == 130
    assert (await claimed(me))["cr-2"] == ""


@pytest.mark.parametrize("told", [signal.SIGHUP, signal.SIGTERM])
@on_sqlite
async def test_a_desk_whose_terminal_is_closed_gives_back_what_it_holds(
    system: System, me: Caller, told: signal.Signals
) -> None:
    await waiting(me, system, "cr-1")
    async with desk(system) as terminal:
        await terminal.expect(PROMPT)
        assert await claimed(me) == {"cr-1": "ada"}
        terminal.process.send_signal(told)
        assert await terminal.ended() == 128 + told
    assert await claimed(me) == {"cr-1": ""}


@on_sqlite
async def test_a_desk_that_waits_sees_what_enters_the_queue(system: System, me: Caller) -> None:
    async with desk(system) as terminal:
        await terminal.expect("Nothing that matches waits.")
        terminal.press("w")
        await terminal.expect("any key ends it")
        await waiting(me, system, "cr-new")
        assert "cr-new" in await terminal.expect(PROMPT)
        terminal.press("\x04")
        assert await terminal.ended() == 0
    await makers.until(lambda: _nobody_holds(me))


async def _nobody_holds(me: Caller) -> bool:
    return set((await claimed(me)).values()) == {""}
