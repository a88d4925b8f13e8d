"""The faults of the suite, as one table; how each strikes is in `strikes`, by victim."""

from dataclasses import dataclass
from enum import StrEnum

from tests.faults.failpoints import Point
from tests.faults.strikes import broker, database, messages, network, processes
from tests.faults.strikes.struck import Strike
from tests.faults.world import Surface


class Recovery(StrEnum):
    """What is timed after a strike."""

    PROBE = "probe"  #: from the end of the strike until a job submitted then has ended and its watcher knows
    RESTART = "restart"  #: from the strike until each job that its worker lost was started again


PLAIN = Surface()
PROXIED = Surface(proxied=True)
CLUSTERED = Surface(cluster=True)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row of the table.

    Attributes:
        fast: among the selection that `make test` runs.
        cuts_off: it cuts reviewers off from the database, so that one which nothing struck may lose its jobs.
        most_p99_seconds: what the product promises of its recovery, where it promises anything.
    """

    name: str
    strike: Strike
    recovery: Recovery = Recovery.PROBE
    surface: Surface = PLAIN
    fast: bool = False
    cuts_off: bool = False
    most_p99_seconds: float | None = None


FAULTS = (
    Fault(name="gateway: kill -9", strike=processes.killed("gateway"), fast=True),
    Fault(
        name="gateway: kill -9 between commit and publish",
        strike=processes.at(Point.SUBMIT_COMMITTED, "gateway"),
        fast=True,
    ),
    Fault(name="gateway: frozen inside a submit", strike=processes.frozen_inside_a_submit, fast=True),
    Fault(
        name="reviewer: kill -9",
        strike=processes.killed("reviewer"),
        recovery=Recovery.RESTART,
        fast=True,
        most_p99_seconds=5.0,
    ),
    Fault(
        name="reviewer: kill -9, again before its jobs are through",
        strike=processes.killed("reviewer", once_recovered=False),
        recovery=Recovery.RESTART,
    ),
    Fault(
        name="reviewer: stopped beyond its lease, then continued",
        strike=processes.stopped_beyond_lease,
        recovery=Recovery.RESTART,
        fast=True,
    ),
    Fault(
        name="reviewer: the reply to a claim is lost",
        strike=processes.at(Point.CLAIM_COMMITTED, "reviewer", dies=False),
        fast=True,
    ),
    Fault(
        name="reviewer: the reply to a conclusion is lost",
        strike=processes.at(Point.CONCLUSION_COMMITTED, "reviewer", dies=False),
        fast=True,
    ),
    Fault(name="reviewer: an engine kills its process beside 15 innocent jobs", strike=processes.poisoned, fast=True),
    Fault(name="notifier: kill -9", strike=processes.killed("notifier")),
    Fault(name="notifier: kill -9 before the post", strike=processes.at(Point.WEBHOOK_UNSENT, "notifier"), fast=True),
    Fault(name="notifier: kill -9 after the post", strike=processes.at(Point.WEBHOOK_SENT, "notifier"), fast=True),
    Fault(
        name="notifier: kill -9 before its commit", strike=processes.at(Point.WEBHOOK_RECORDED, "notifier"), fast=True
    ),
    Fault(name="everything replaced in turn (SIGTERM)", strike=processes.replaced_in_turn()),
    Fault(name="RabbitMQ: restart", strike=broker.broker_restarted),
    Fault(name="RabbitMQ: kill -9", strike=broker.broker_killed, fast=True),
    Fault(name="RabbitMQ: wiped", strike=broker.broker_wiped),
    Fault(name="RabbitMQ: frozen", strike=broker.broker_frozen),
    Fault(name="RabbitMQ: memory alarm", strike=broker.broker_alarmed),
    Fault(name="RabbitMQ: queues purged", strike=broker.queues_purged, fast=True),
    Fault(name="RabbitMQ: the notifier's queue deleted", strike=broker.outcomes_queue_deleted, fast=True),
    Fault(name="RabbitMQ: the listeners' queues deleted", strike=broker.gateway_queues_deleted),
    Fault(name="RabbitMQ: a queue's leader killed, of three nodes", strike=broker.leader_killed, surface=CLUSTERED),
    Fault(name="messages: garbage", strike=messages.messages_garbled, fast=True),
    Fault(name="messages: repeated, stale, from the future, reordered", strike=messages.messages_repeated, fast=True),
    Fault(name="PostgreSQL: kill -9", strike=database.database_killed, cuts_off=True, fast=True),
    Fault(name="PostgreSQL: frozen beyond the lease", strike=database.database_frozen, fast=True),
    Fault(name="PostgreSQL: connections exhausted", strike=database.connections_exhausted, cuts_off=True, fast=True),
    Fault(name="PostgreSQL: one job locked beyond its lease", strike=database.job_locked, fast=True),
    Fault(name="PostgreSQL: jobs locked beyond the lease", strike=database.table_locked, fast=True),
    Fault(
        name="PostgreSQL: the reply to a commit is lost",
        strike=network.commit_reply_lost,
        cuts_off=True,
        surface=PROXIED,
    ),
    Fault(name="network: slow to database and broker", strike=network.network_slow, cuts_off=True, surface=PROXIED),
    Fault(
        name="network: database and broker cut",
        strike=network.cut("postgresql", "rabbitmq"),
        cuts_off=True,
        surface=PROXIED,
    ),
    Fault(
        name="network: half-open to the database",
        strike=network.half_open("postgresql"),
        cuts_off=True,
        surface=PROXIED,
    ),
    Fault(name="network: half-open to the broker", strike=network.half_open("rabbitmq"), surface=PROXIED),
    Fault(
        name="network: clients cut, resuming at another gateway",
        strike=network.cut("gateway-1", "gateway-2"),
        surface=PROXIED,
    ),
)
