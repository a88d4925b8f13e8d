"""What every panel must show after a known load: by dashboard and title, a number for each series by its legend.

A series that is not named here must be zero; (low, high) stands for a number that the load does not determine, and
from zero on for a series that may be absent. No time is longer than what the load itself measured around it.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping

from prometheus_client import Histogram

from imprimatur import metrics
from imprimatur.broker import Queue
from imprimatur.metrics import ROWS_REMOVED
from imprimatur.policy import Mode
from tests.deploy.load import UNKNOWN, WATCHES, Round

Number = float | tuple[float, float]
Shown = Mapping[str, Number]

#: Panels that rightly show nothing here, and what it would take.
EMPTY = {
    "overview: Firing now": "an alert",
    "reviewer: Questions to providers": "the llm engine",
    "reviewer: Left alone": "the llm engine",
    "reviewer: Tokens": "the llm engine",
    "reviewer: Cost": "the llm engine",
}

#: So many that no message of the load waits for one.
SLOTS = 64
QUANTILES = ("median", "95 %", "99 %")
_REVIEW_QUEUES = (Queue.REVIEW_HIGH, Queue.REVIEW_NORMAL, Queue.REVIEW_LOW)
#: What the load calls, streams aside.
_CALLS = ("SubmitJob", "BatchSubmitJobs", "CancelJob", "DecideReview", "GetJob")
_LOOPS = ("webhook-retries", "webhook-sweep")
_LITTLE = 1e-6


def _within(histogram: Histogram, seconds: float) -> Number:
    """A quantile of times none of which was longer: it is reckoned from buckets, so the end of theirs bounds it."""
    ends = [end for end in histogram._upper_bounds if math.isfinite(end)]
    return (_LITTLE, next((end for end in ends if end >= seconds), ends[-1]))


def _quantiles(histogram: Histogram, seconds: float) -> Shown:
    return dict.fromkeys(QUANTILES, _within(histogram, seconds))


def standing(
    rounds: Iterable[Round], addresses: Mapping[str, str], node: str, *, began: float, at: float
) -> dict[str, Shown]:
    """What stands after all rounds.

    Args:
        addresses: of each process, as Prometheus names it, by its service; `node`: of RabbitMQ.
        began: before the first process, in seconds of the epoch.
        at: when it is asked.
    """
    done = list(rounds)
    waiting = sum(one.waiting for one in done)
    each = [f"imprimatur-{service} {address}" for service, address in addresses.items()]
    return {
        "overview: Processes": dict.fromkeys(addresses, 1),
        "overview: Oldest due job": {"": 0},
        "overview: Waiting for a person": {"": waiting},
        "overview: Budget burn": dict.fromkeys(("submit", "start", "review"), 0),
        "overview: Failures against the budgets": dict.fromkeys(("submit", "start", "review"), 0),
        "overview: Waiting to start": {"creative_review normal": 0},
        "overview: Queued, due or later": {"creative_review normal": sum(len(one.scheduled) for one in done)},
        "overview: Oldest due, by priority": dict.fromkeys(("high", "normal", "low"), 0),
        "overview: Slots": {"in use": 0, "there are": SLOTS},
        "overview: Open streams": {"WatchJob": WATCHES, "WatchJobs": 1},
        "reviewer: Slots in use, by reviewer": {addresses["reviewer"]: 0},
        "notifier: Outcomes untold": {"": 0},
        "notifier: Deliveries open": {"": 0},
        "notifier: Oldest never posted": {"": 0},
        "notifier: What is open": {"outcomes untold": 0, "deliveries open": 0},
        "people: Waiting": {"": waiting},
        # Of the first round; looked at after the last.
        "people: Oldest": {"": (done[-1].ended - done[0].ended, at - done[0].began)},
        "people: Overdue": {"": 0},
        "people: Held now": {"": 0},
        "people: Waiting, by priority": {"creative_review normal": waiting},
        "infrastructure: Outbox": {"messages": 0},
        "infrastructure: Since the last clean-up": {"": (0.0, 300.0)},
        "infrastructure: Connected to the broker": dict.fromkeys(each, 1),
        "infrastructure: Consuming": {f"{service} {addresses[service]}": 1 for service in ("reviewer", "notifier")},
        "infrastructure: Database connections in use": dict.fromkeys(each, (0.0, 1.0)),
        "infrastructure: Memory": dict.fromkeys(each, (20e6, 2e9)),
        "infrastructure: Open files": dict.fromkeys(each, (1e-6, 0.9)),
        "infrastructure: Time since the start": dict.fromkeys(each, (at - done[0].began, at - began)),
        "infrastructure: Messages by queue": dict.fromkeys(Queue, 0),
        "infrastructure: Consumers by queue": dict.fromkeys((*_REVIEW_QUEUES, Queue.NOTIFIER_EVENTS), 1),
        "infrastructure: Memory of each node": {node: (1e-3, 1.0)},
        "infrastructure: Alarms": {f"memory {node}": 0, f"disk {node}": 0},
        # Pools keep what they opened; the exporter's own question is active while it is asked.
        "infrastructure: Connections": {"idle": (3, 40), "active": (0, 40), "idle in transaction": (0, 40)},
        "infrastructure: Size": {"imprimatur": (1e6, 1e9), "postgres": (1e6, 1e9)},
    }


def counted(done: Round, addresses: Mapping[str, str]) -> dict[str, Shown]:
    """What was counted in one round: totals where the panel shows a total."""
    job = "creative_review"
    posts = done.posts.total()
    succeeded = done.left["succeeded"] + done.by_people.total()
    return {
        "overview: Jobs accepted": {"": done.accepted.total()},
        "overview: Success rate": {"": succeeded / (succeeded + done.left["failed"])},
        "overview: Decided without a failure of the engine": {"": 1.0},
        "reviewer: Attempts for each job": {"attempts": done.worked_on / done.left.total()},
        "reviewer: Jobs that lost their reviewer": {"lost": 0, "examined apart, after two losses": 0},
        "reviewer: Results discarded": {"discarded": 0},
        "notifier: Posts delivered": {"": done.posts["delivered"] / posts},
        "notifier: Given up": {"": 1},
        "notifier: Not signed": {"tries": 0},
        "notifier: Failing passes": dict.fromkeys(_LOOPS, 0),
        "people: Decided": {"": done.by_people.total()},
        "people: Against the machine's advice": {
            "": sum(number for (_, overrides), number in done.by_people.items() if overrides) / done.by_people.total()
        },
        "infrastructure: Set aside": dict.fromkeys((*_REVIEW_QUEUES, Queue.NOTIFIER_EVENTS, "job.events"), 0),
        "infrastructure: Cleaned up": dict.fromkeys(ROWS_REMOVED, 0),
        "infrastructure: Failing background passes": dict.fromkeys((*_LOOPS, "outbox-poller", "dispatcher"), 0),
        "overview: Submit to start": _quantiles(metrics.submit_to_start_seconds, done.work_seconds),
        "overview: Submit to end": _quantiles(metrics.submit_to_end_seconds, done.work_seconds),
        "overview: Watch lag": _quantiles(metrics.watch_lag_seconds, done.seconds),
        "reviewer: Engine calls": _quantiles(metrics.engine_seconds, done.work_seconds),
        "reviewer: Time of a fetch": _quantiles(metrics.image_fetch_seconds, done.work_seconds),
        "reviewer: Engine calls, 95 %, by engine": {"builtin": _within(metrics.engine_seconds, done.work_seconds)},
        "notifier: Lag": _quantiles(metrics.webhook_lag_seconds, done.seconds),
        "notifier: Duration of posts": _quantiles(metrics.webhook_seconds, done.seconds),
        # Of each the whole round: a gateway may look at its clock long after its caller has the answer.
        "overview: Time to answer, 99 %": dict.fromkeys(_CALLS, _within(metrics.rpc_seconds, done.seconds)),
        "infrastructure: Processor": {
            f"imprimatur-{service} {address}": (_LITTLE, os.cpu_count() or 1) for service, address in addresses.items()
        },
        "reviewer: Sent back to the engine": {job: 0},
        "reviewer: Decided by a changed policy": {"approved": 0, "rejected": 0},
        "reviewer: Policies made live": dict.fromkeys(map(str, Mode), 0),
    }


def per_second(done: Round) -> dict[str, Shown]:
    """What the panels show as a rate: here the totals of one round."""
    job = "creative_review"
    outcomes = done.left.total() + done.by_people.total()
    stored = done.worked_on + outcomes  # requests to review, and outcomes
    told = stored + done.accepted.total() + done.worked_on  # and what watchers alone hear: accepted, started
    received = Counter({f"review.{priority}": number for priority, number in done.accepted.items()})
    received["review.normal"] -= len(done.scheduled) + done.left["cancelled"]
    triggers, decisions = _by(done.decisions, 1), _by(done.decisions, 0)
    pending = Counter({trigger: one for (decision, trigger), one in done.decisions.items() if decision == "pending"})
    return {
        "overview: Accepted": {f"{job} {priority}": number for priority, number in done.accepted.items()},
        "overview: Out of the machine's hands": {f"{job} {state}": number for state, number in done.left.items()},
        "overview: Refused by a limit": {},
        # Who waits for no more than the machine's part leaves before the stream ends; of one that has ended, perhaps.
        "overview: Calls that did not end in OK": {
            "GetJob NOT_FOUND": UNKNOWN,
            "WatchJob CANCELLED": (done.left["awaiting_review"], done.settled),
        },
        "reviewer: Attempts by outcome": {
            "succeeded": done.left["succeeded"] + done.left["awaiting_review"],
            "failed": done.left["failed"],
        },
        "reviewer: Attempts by error": {"unreviewable_input": done.left["failed"]},
        "reviewer: Postponed": {},
        # Each job that failed has one image, which is none.
        "reviewer: Images looked at": {"decoded": done.images - done.left["failed"], "refused": done.left["failed"]},
        "reviewer: Bytes of images": {"inline": done.image_bytes, "fetched": (1, 1000)},
        "reviewer: Fetches from URLs": {"fetched": 1},
        "reviewer: Equal creatives": {},
        "reviewer: Decisions of the machine": decisions,
        "reviewer: Rows of the decision table": triggers,
        "reviewer: Messages": {"claimed": done.worked_on},
        "reviewer: Put up for claiming": {"at_once": done.worked_on},
        "notifier: Posts by outcome": done.posts,
        "notifier: Outcomes received from the broker": {"redelivered: false": outcomes},
        "people: Coming and going": {"coming": done.left["awaiting_review"], "decided": done.by_people.total()},
        "people: Why they come": pending,
        "people: Agreement with the machine": {
            "overrode": sum(number for (_, overrides), number in done.by_people.items() if overrides),
            **dict.fromkeys(("agreed", "no_advice"), (0, done.by_people.total())),
        },
        "people: What they decide": {
            f"{decision}, overrides: {str(overrides).lower()}": number
            for (decision, overrides), number in done.by_people.items()
        },
        # What happens together is told together; what a busy machine forgets too late is handed over once more.
        "infrastructure: Handed to the broker": {"confirmed": (done.worked_on, told + stored)},
        "infrastructure: Transactions": {
            "imprimatur committed": (outcomes, 1e6),
            "imprimatur rolled back": (0, 1e6),
            **dict.fromkeys(("postgres committed", "postgres rolled back"), (0, 1e6)),
        },
        "infrastructure: Received from the broker": {
            # Of many jobs that are put up together a few share a message.
            **{f"{queue}, redelivered: false": (number / 8, number) for queue, number in received.items()},
            "notifier.events, redelivered: false": outcomes,
        },
    }


def _by(decisions: Counter[tuple[str, str]], place: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for key, number in decisions.items():
        found[key[place]] += number
    return found
