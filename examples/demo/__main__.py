"""`python -m examples.demo`: submit all example creatives, watch them, decide one, and hear of every outcome.

Starts `imprimatur serve` on a fresh folder and a webhook receiver in another process, and ends both. The exit
code is 0 only if every job is terminal or awaits a person, each outcome's webhook arrived and was verified, and
nothing was approved by the AI that must not be.
"""

import asyncio
import contextlib
import signal
import sys
import time
from contextlib import aclosing

from deploy.local.process import POLL_SECONDS
from examples.demo import material, outcomes
from examples.demo.material import Item
from examples.demo.outcomes import Outcome
from examples.demo.processes import DemoFailed, Running, running
from examples.demo.screen import Screen
from imprimatur.client import Client, ClientError, is_settled, submission
from imprimatur.v1.creative_pb2 import DECISION_APPROVED
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW, Job

_REVIEW_SECONDS = 300.0
_WEBHOOK_SECONDS = 60.0
_PATIENCE_SECONDS = 5.0
_MOST_NAMED = 5
_INTERRUPTED = 130
_REASON = "Looked at words and pictures: an ordinary offer, nothing in it that our rules forbid."


async def demonstrate(screen: Screen) -> None:
    """The whole demo; raises DemoFailed, with what is missing."""
    began = time.monotonic()
    items = material.items()
    screen.say("Starting `imprimatur serve` and a webhook receiver …")
    async with running() as server, _client(server) as client:
        submitted = await _submit(screen, client, server, items)
        jobs = await _watch(screen, client, submitted)
        expected = {outcomes.outcome_of(job) for job in jobs.values()}
        decided = await _decide(screen, client, submitted, jobs)
        expected.add(outcomes.outcome_of(decided))
        await _hear(screen, server, expected, decided)
        if faults := outcomes.faults(submitted, jobs, expected, server.received):
            raise DemoFailed("\n".join(["Not as it must be:", *faults]))
        _sum_up(screen, submitted, jobs, len(expected))
    screen.say(f"Done in {time.monotonic() - began:.1f} s; both processes are gone.")


def _client(server: Running) -> Client:
    return Client(server.target, api_key=server.api_key, patience_seconds=_PATIENCE_SECONDS)


async def _submit(screen: Screen, client: Client, server: Running, items: list[Item]) -> dict[str, Item]:
    """All of them in one call; by job id."""
    requests = [submission(item.creative, callback_url=server.callback_url) for item in items]
    began = time.monotonic()
    answers = await client.submit_batch(requests)
    took_ms = (time.monotonic() - began) * 1000
    refused = [answer for answer in answers if isinstance(answer, ClientError)]
    if refused:
        raise DemoFailed(f"{len(refused)} creatives were refused, the first one so: {refused[0].message}")
    screen.say(f"{len(items)} creatives accepted as jobs in {took_ms:.0f} ms. The AI reviews them:")
    return {job.id: item for job, item in zip(answers, items, strict=True) if isinstance(job, Job)}


async def _watch(screen: Screen, client: Client, submitted: dict[str, Item]) -> dict[str, Job]:
    """Show them all until the machine's part is over; what became of each by then."""
    jobs: dict[str, Job] = {}

    async def follow(job_id: str) -> None:
        async with aclosing(client.watch(job_id)) as versions:
            async for job in versions:
                jobs[job_id] = job
                screen.put(job)
                if is_settled(job):
                    return

    with contextlib.suppress(TimeoutError), screen.progress(submitted):
        async with asyncio.timeout(_REVIEW_SECONDS), asyncio.TaskGroup() as group:
            for job_id in submitted:
                group.create_task(follow(job_id))
    if unfinished := [submitted[job_id].creative.name for job_id in submitted if not _settled(jobs.get(job_id))]:
        named = ", ".join(unfinished[:_MOST_NAMED])
        raise DemoFailed(f"After {_REVIEW_SECONDS:g} s {len(unfinished)} were not reviewed: {named} …")
    screen.decisions()
    return jobs


def _settled(job: Job | None) -> bool:
    return job is not None and is_settled(job)


async def _decide(screen: Screen, client: Client, submitted: dict[str, Item], jobs: dict[str, Job]) -> Job:
    """Be the person: approve a harmless creative that the AI left to one."""
    waiting = [job for job in jobs.values() if job.state == JOB_STATE_AWAITING_REVIEW]
    harmless = [job for job in waiting if not submitted[job.id].must_not_approve]
    if not waiting:
        raise DemoFailed("No creative waits for a person, though some of them must.")
    review = await client.claim_review((harmless or waiting)[0].id, reviewer="demo")
    decided = await client.decide(review.job.id, DECISION_APPROVED, _REASON, reviewer="demo", token=review.claim_token)
    name = submitted[decided.id].creative.name
    screen.say(
        f"\nA person takes “{name}”, which waits by {review.job.creative_review.ai_review.reason!r}, and approves."
    )
    return decided


async def _hear(screen: Screen, server: Running, expected: set[Outcome], decided: Job) -> None:
    """Wait until every outcome's webhook has arrived, or too long; show that of the person's decision."""
    messages = outcomes.received(server.received)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_WEBHOOK_SECONDS):
            while not expected <= set(outcomes.told(messages)):
                await asyncio.sleep(POLL_SECONDS)
                messages = outcomes.received(server.received)
    for message in messages:
        if message["body"]["data"]["job_id"] == decided.id and message["body"]["type"] == "job.succeeded":
            screen.say("\nIts webhook, received in the other process and verified there by `standardwebhooks`:")
            screen.webhook(message)


def _sum_up(screen: Screen, submitted: dict[str, Item], jobs: dict[str, Job], webhooks: int) -> None:
    approved = [submitted[job_id] for job_id in outcomes.approved(jobs)]
    waiting = sum(job.state == JOB_STATE_AWAITING_REVIEW for job in jobs.values())
    rejected = len(jobs) - len(approved) - waiting
    benign = sum(item.benign for item in submitted.values())
    screen.say(
        f"\n{len(jobs)} creatives: {len(approved)} approved and {rejected} rejected by the AI, {waiting} "
        f"left to a person, who decided 1. {webhooks} outcomes, {webhooks} webhooks verified."
    )
    screen.say(
        f"Approved by the AI though they must not be: {sum(item.must_not_approve for item in approved)}. "
        f"Benign ones approved without a person: {sum(item.benign for item in approved)} of {benign}."
    )
    screen.say(
        "These examples are hard ones, and with this engine whatever has images waits for a person; of plain text ads "
        "it approves about two in three (docs/evaluation.md)."
    )


async def _until_asked_to_stop(screen: Screen) -> int:
    """The exit code. SIGTERM ends the demo as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await demonstrate(screen)
    except DemoFailed as fault:
        sys.stderr.write(f"The demo failed. {fault}\n")
        return 1
    return 0


def main() -> int:
    """The exit code: 0 as the module says, 1 with what is missing, 130 after Ctrl-C or SIGTERM."""
    try:
        return asyncio.run(_until_asked_to_stop(Screen()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("Interrupted; both processes are gone.\n")
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
