"""The audit of the fault suite finds what it is there to find: each promise, broken on purpose."""

import asyncio
import json
import random
import uuid
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from standardwebhooks.webhooks import Webhook

from imprimatur.v1.job_pb2 import JOB_STATE_SUCCEEDED, Job
from tests.faults import audit
from tests.faults.audit import Findings, Record
from tests.faults.load import Load, Told
from tests.faults.scripts import Kind, Script
from tests.faults.world import World, verifying
from tests.service.receiver import Post, Receiver

_EARLY = datetime(2026, 1, 1, tzinfo=UTC)


def a_world_without_servers() -> World:
    return World(folder=Path(), postgres=cast(Any, None), rabbits=[], receiver=Receiver(), api_key="")


class Case:
    """One job that ended as it should, everywhere; a test breaks one thing of it."""

    def __init__(self) -> None:
        self.load = Load(world=a_world_without_servers(), rng=random.Random(1))
        self.job_id = str(uuid.uuid4())
        script = Script(kind=Kind.APPROVE, seconds=1.0)
        self.load.asked["request"] = script
        self.told = Told(script=script, job_id=self.job_id, seen=3)
        self.told.end = Job(id=self.job_id, version=3, state=JOB_STATE_SUCCEEDED)
        self.load.told[self.job_id] = self.told
        self.job: dict[str, Any] = {
            "id": self.job_id,
            "request_id": "request",
            "state": "succeeded",
            "decision": "approved",
            "version": 3,
            "attempts": 1,
            "script": script.headline,
        }
        self.events = [_event(1, "submitted", "queued"), _event(2, "started", "running")]
        self.events.append(_event(3, "succeeded", "succeeded"))
        self.attempts: list[dict[str, Any]] = [{"claim_no": 1, "outcome": "succeeded", "worker": "one"}]
        self.deliveries: list[dict[str, Any]] = [{"state": "delivered", "attempts": 1}]
        self.post("m-1", "job.succeeded")

    def post(self, webhook_id: str, kind: str, **more: str) -> None:
        """The receiver verified and took a webhook."""
        body = json.dumps({"type": kind, "data": {"job_id": self.job_id}, **more}).encode()
        self.load.world.taken.append(Post(path="/hook", headers={"webhook-id": webhook_id}, body=body))

    def judged(self, *, outbox: int = 0) -> Findings:
        """What the audit finds."""
        present = {self.job_id: self.job} if self.job else {}
        return audit.judge(self.load, self.record(present, outbox=outbox))

    def record(self, jobs: dict[str, Any], *, outbox: int = 0) -> Record:
        """What the database would say."""
        return Record(
            jobs=jobs,
            events=defaultdict(list, {self.job_id: self.events} if jobs else {}),
            attempts=defaultdict(list, {self.job_id: self.attempts} if jobs else {}),
            deliveries={self.job_id: self.deliveries},
            outbox=outbox,
        )


def _event(version: int, kind: str, state: str) -> dict[str, Any]:
    return {"version": version, "kind": kind, "state": state}


def _broken(findings: Findings) -> set[str]:
    return {name for name, found in vars(findings).items() if found}


def test_a_job_as_it_should_be_is_not_found_at_fault() -> None:
    assert Case().judged().defects() == []


def test_an_accepted_job_that_is_not_there_is_lost() -> None:
    case = Case()
    case.job = {}
    assert "lost" in _broken(case.judged())


def test_a_job_in_another_state_than_its_script_allows_ended_wrong() -> None:
    case = Case()
    case.job["decision"] = "rejected"
    assert _broken(case.judged()) == {"wrong_ends"}


def test_a_job_that_never_ended_is_found() -> None:
    case = Case()
    case.job |= {"state": "running", "decision": "", "version": 2}
    case.events.pop()
    case.told.end = None
    assert {"wrong_ends", "applied_twice"} & _broken(case.judged()) == {"wrong_ends"}
    assert case.record({case.job_id: case.job}).unfinished == [case.job_id]


def test_a_cancellation_that_was_confirmed_and_did_not_hold_is_found() -> None:
    case = Case()
    case.told.cancelled = True
    assert _broken(case.judged()) == {"wrong_ends"}


def test_a_second_end_is_a_result_applied_twice() -> None:
    case = Case()
    case.events.append(_event(4, "succeeded", "succeeded"))
    case.job["version"] = 4
    assert "applied_twice" in _broken(case.judged())


def test_something_after_the_end_is_a_result_applied_twice() -> None:
    case = Case()
    case.events.append(_event(4, "started", "succeeded"))
    assert "applied_twice" in _broken(case.judged())


def test_two_successful_attempts_are_a_result_applied_twice() -> None:
    case = Case()
    case.events.insert(1, _event(2, "started", "running"))
    case.attempts.append({"claim_no": 2, "outcome": "succeeded", "worker": "two"})
    assert _broken(case.judged()) == {"applied_twice"}


def test_an_attempt_left_open_is_found() -> None:
    case = Case()
    case.attempts[0]["outcome"] = None
    assert _broken(case.judged()) == {"wrong_ends"}


def test_more_attempts_charged_than_the_script_spends_are_found() -> None:
    case = Case()
    case.job["attempts"] = 2
    assert _broken(case.judged()) == {"innocents_charged"}


def test_a_watcher_who_never_saw_the_end_is_found() -> None:
    case = Case()
    case.told.end = None
    assert _broken(case.judged()) == {"ends_missed"}


def test_a_watcher_who_saw_an_end_that_the_database_does_not_know_is_found() -> None:
    case = Case()
    case.told.end = Job(id=case.job_id, version=2, state=JOB_STATE_SUCCEEDED)
    assert _broken(case.judged()) == {"ends_missed"}


def test_a_stream_that_goes_backwards_is_found() -> None:
    case = Case()
    case.load._see(case.told, Job(id=case.job_id, version=2))
    assert "regressions" in _broken(case.judged())


def test_a_webhook_that_never_came_is_missing() -> None:
    case = Case()
    case.load.world.taken.clear()
    assert _broken(case.judged()) == {"webhooks_missing"}


@pytest.mark.parametrize(("webhook_id", "more"), [("m-2", {}), ("m-1", {"another": "body"})])
def test_a_webhook_under_two_ids_or_with_two_bodies_is_found(webhook_id: str, more: dict[str, str]) -> None:
    case = Case()
    case.post(webhook_id, "job.succeeded", **more)
    assert _broken(case.judged()) == {"surprises"}


def test_a_webhook_repeated_as_it_was_is_in_order() -> None:
    case = Case()
    case.post("m-1", "job.succeeded")
    assert case.judged().defects() == []


def test_a_webhook_of_what_never_happened_is_found() -> None:
    case = Case()
    case.post("m-2", "job.failed")
    assert _broken(case.judged()) == {"surprises"}


def test_messages_left_in_the_outbox_are_found() -> None:
    assert _broken(Case().judged(outbox=1)) == {"surprises"}


async def test_a_users_failure_is_found() -> None:
    case = Case()

    async def fail() -> None:
        raise RuntimeError

    case.load._start(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert _broken(case.judged()) == {"surprises"}


def test_recovery_is_timed_from_the_strike_that_hit_the_attempt() -> None:
    case = Case()

    def second(number: float) -> datetime:
        return _EARLY + timedelta(seconds=number)

    case.attempts[:] = [
        {"worker": "one", "outcome": "lost", "started_at": second(0), "finished_at": second(5)},
        {"worker": "two", "outcome": "lost", "started_at": second(6), "finished_at": second(9)},
        {"worker": "one", "outcome": "succeeded", "started_at": second(10), "finished_at": second(11)},
    ]
    record = case.record({case.job_id: case.job})
    strikes = [(second(2), "one"), (second(7), "one"), (second(8), "another")]
    assert audit.restarts(record, strikes) == [4.0]


async def test_a_webhook_that_was_not_verified_is_not_taken_and_found() -> None:
    case = Case()
    world = case.load.world
    (post,) = world.taken
    world.taken.clear()
    world.receiver.posts.append(post)
    answer = await verifying("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", world)(post)
    assert answer.status == 401
    assert _broken(case.judged()) == {"webhooks_missing", "surprises"}


async def test_a_webhook_that_is_signed_as_it_should_be_is_taken() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    at, body = datetime.now(UTC), "{}"
    headers = {
        "webhook-id": "m-1",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign("m-1", at, body),
    }
    post = Post(path="/hook", headers=headers, body=body.encode())
    world = a_world_without_servers()
    answer = await verifying(secret, world)(post)
    assert (answer.status, world.taken, world.refused) == (204, [post], [])


@pytest.mark.parametrize("state", ["pending", "abandoned"])
def test_a_delivery_in_any_state_but_delivered_is_found(state: str) -> None:
    case = Case()
    case.deliveries[0]["state"] = state
    assert _broken(case.judged()) == {"surprises"}


def test_an_attempt_that_a_worker_lost_unstruck_is_a_defect_unless_it_was_cut_off() -> None:
    case = Case()
    case.events.insert(1, _event(2, "started", "running"))
    case.attempts.insert(0, {"claim_no": 1, "outcome": "lost", "worker": "host:7"})
    case.attempts[1]["claim_no"] = 2
    findings = case.judged()
    assert _broken(findings) == {"lost_unstruck"}
    assert len(findings.defects()) == 1
    assert findings.defects(cut_off=True) == []

    case.load.world.struck_workers.add("host:7")
    assert case.judged().defects() == []
