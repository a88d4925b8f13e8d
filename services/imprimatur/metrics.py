"""Every metric, defined once: name, help, labels. Ids are never labels.

Conventions of Prometheus: base units (seconds, bytes), `_total` for counters. Each service exports the whole
registry on its own /metrics; a metric that a service never touches stays at zero there or shows no series.
What alerts and totals are made of is there at zero from the first scrape on (the end of this page): the first
event would otherwise be no increase to Prometheus, but the birth of a series.
"""

import time
from collections.abc import Iterable, Mapping
from itertools import product

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from imprimatur.broker import Queue
from imprimatur.errors import (
    AttemptError,
    BudgetExhausted,
    NotBegun,
    PermanentError,
    Postponed,
    RateLimited,
    TimedOut,
    TransientError,
)
from imprimatur.human import Agreement
from imprimatur.job import AttemptOutcome, JobType, Priority, State
from imprimatur.policy import Mode, Trigger

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW = (0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400, 86400)

#: One look at the database may take so long, and the next follows so long after it. A look is up to three counts, each
#: of which the database itself ends after 5 s: whatever it lets through is shown, however slow it is.
LOOK_SECONDS = 15.0
PAUSE_SECONDS = 5.0
#: What was seen of the database so long ago is not known any more: three of the slowest looks that succeed, so that two
#: may fail in between.
KNOWN_SECONDS = 3 * (LOOK_SECONDS + PAUSE_SECONDS)


class DatabaseGauge(Collector):
    """What somebody saw in the database, the same for every process that looks there.

    Without series before the first look, and again once the last one that succeeded is `KNOWN_SECONDS` old: graphs
    show a gap then, and alerts a database that is away, not what was true before.
    """

    def __init__(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> None:
        self.labels = labels
        self._name = name
        self._documentation = documentation
        self._seen: Mapping[tuple[str, ...], float] = {}
        self._seen_at = 0.0
        REGISTRY.register(self)

    def show(self, seen: float | Mapping[tuple[str, ...], float]) -> None:
        """What was seen just now: one number, or all of them by their labels' values."""
        self._seen = seen if isinstance(seen, Mapping) else {(): seen}
        self._seen_at = time.monotonic()

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The family without its series."""
        return [GaugeMetricFamily(self._name, self._documentation, labels=self.labels)]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """What is known now."""
        family = GaugeMetricFamily(self._name, self._documentation, labels=self.labels)
        if time.monotonic() - self._seen_at < KNOWN_SECONDS:
            for values, number in self._seen.items():
                family.add_metric(values, number)
        return [family]


# --- gateway ---------------------------------------------------------------------------------------------
rpc_requests = Counter(
    "imprimatur_rpc_requests_total", "gRPC calls answered, by method and status code.", ["rpc", "code"]
)
rpc_seconds = Histogram(
    "imprimatur_rpc_duration_seconds",
    "Time to answer a unary gRPC call, by method and status code.",
    ["rpc", "code"],
    buckets=_FAST,
)
limit_refusals = Counter(
    "imprimatur_limit_refusals_total",
    "Jobs, streams and calls refused by a limit of a tenant (submits_per_second, open_jobs, streams, followed_jobs, "
    "uploads, asset_bytes) or of the process (all_streams, all_followed_jobs, request_bytes, upload_bytes).",
    ["limit"],
)
open_streams = Gauge("imprimatur_open_streams", "Watch streams open now.", ["rpc"])
jobs_submitted = Counter(
    "imprimatur_jobs_submitted_total", "Jobs accepted, by type and priority.", ["type", "priority"]
)
watch_lag_seconds = Histogram(
    "imprimatur_watch_lag_seconds",
    "From an event's arrival at the gateway to its job's being handed to a watcher's stream.",
    buckets=_FAST,
)
jobs_by_state = DatabaseGauge(
    "imprimatur_jobs", "Unfinished jobs, by state, type and priority.", ("state", "type", "priority")
)
due_jobs = DatabaseGauge(
    "imprimatur_due_jobs", "Queued jobs whose time has come, by type and priority.", ("type", "priority")
)
oldest_due_seconds = DatabaseGauge(
    "imprimatur_oldest_due_job_age_seconds", "Age of the oldest job that is due and waits.", ("priority",)
)
awaiting_oldest_seconds = DatabaseGauge(
    "imprimatur_oldest_pending_review_age_seconds", "Age of the oldest job that waits for a person."
)
jobs_released = Counter(
    "imprimatur_jobs_released_total",
    "Jobs put up for claiming, by way: at once, by the dispatcher, again.",
    ["way"],
)
reviewed_again = Counter(
    "imprimatur_jobs_reviewed_again_total", "Jobs sent back to the engine after it had failed, by type.", ["type"]
)
jobs_redecided = Counter(
    "imprimatur_jobs_redecided_total",
    "Jobs that waited for a person and were decided by a changed policy from what the engine had found, by decision.",
    ["decision"],
)
policy_activations = Counter(
    "imprimatur_policy_activations_total",
    "Times that another version of a tenant's policy was made live through a gateway, by the version's mode.",
    ["mode"],
)
leases_lost = Counter("imprimatur_leases_lost_total", "Jobs queued again because their worker fell silent.")
rows_removed = Counter("imprimatur_rows_removed_total", "Rows that clean-up removed, by kind.", ["kind"])
cleanup_succeeded = Gauge(
    "imprimatur_cleanup_last_success_timestamp_seconds",
    "When clean-up last looked through everything, in whatever gateway; 0: never.",
)
reviews_overdue = DatabaseGauge(
    "imprimatur_reviews_overdue", "Jobs that wait for a person past their due time, by priority.", ("priority",)
)
reviews_claimed = DatabaseGauge(
    "imprimatur_reviews_claimed", "Jobs that wait for a person and that somebody holds now, by priority.", ("priority",)
)
review_claims = Counter(
    "imprimatur_review_claims_total", "What became of people's claims: claimed, released, expired.", ["what"]
)
human_agreement = Counter(
    "imprimatur_human_agreement_total",
    "Decisions by people, by how they stand to the AI's advice, and by the row of the table that asked for a person.",
    ["agreement", "policy_triggered"],
)
time_to_decision_seconds = Histogram(
    "imprimatur_time_to_decision_seconds",
    "From when a person was asked to the decision, by priority.",
    ["priority"],
    buckets=(10, 30, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600, 7 * 24 * 3600),
)
appeals = Counter("imprimatur_appeals_total", "Appeals: made, upheld, overturned.", ["what"])
human_decisions = Counter(
    "imprimatur_human_decisions_total",
    "Decisions by people, and whether they override the AI.",
    ["decision", "overrides_ai"],
)

# --- reviewer --------------------------------------------------------------------------------------------
slots = Gauge("imprimatur_worker_slots", "Jobs that this worker can run at once.")
slots_in_use = Gauge("imprimatur_worker_slots_in_use", "Jobs that this worker runs now.")
claims = Counter(
    "imprimatur_claims_total", "Review messages handled, by result: claimed, stale, given_back.", ["result"]
)
submit_to_start_seconds = Histogram(
    "imprimatur_submit_to_start_seconds",
    "From the time a job was due to its first start.",
    ["type", "priority"],
    buckets=_SLOW,
)
submit_to_end_seconds = Histogram(
    "imprimatur_submit_to_end_seconds",
    "From when a job was accepted, due, or sent back to the engine (the latest counts) to the end of its machine work.",
    ["type", "priority"],
    buckets=_SLOW,
)
attempt_seconds = Histogram(
    "imprimatur_attempt_duration_seconds",
    "Duration of attempts, by type and outcome.",
    ["type", "outcome"],
    buckets=_SLOW,
)
engine_seconds = Histogram(
    "imprimatur_engine_duration_seconds", "Duration of engine calls, by engine.", ["engine"], buckets=_SLOW
)
jobs_finished = Counter(
    "imprimatur_jobs_finished_total",
    "Jobs that left the machine's hands, by type and state: succeeded, failed, cancelled, awaiting_review.",
    ["type", "state"],
)
decisions = Counter(
    "imprimatur_ai_decisions_total", "Decisions by the decision table.", ["decision", "policy_triggered"]
)
attempt_errors = Counter(
    "imprimatur_attempt_errors_total", "Attempts that failed, by error code.", ["type", "error_code"]
)
attempts_apart = Counter(
    "imprimatur_attempts_apart_total",
    "Attempts at jobs that lost two workers, examined in a process of their own.",
)
attempts_postponed = Counter(
    "imprimatur_attempts_postponed_total",
    "Attempts handed back before the provider was asked, by reason: turn_awaited, provider_paused.",
    ["type", "reason"],
)
provider_calls = Counter(
    "imprimatur_provider_calls_total",
    "Questions to AI providers, by provider, model and outcome: answered, or an error code.",
    ["provider", "model", "outcome"],
)
provider_tokens = Counter(
    "imprimatur_provider_tokens_total",
    "Tokens that AI providers reported, by direction: input, output.",
    ["provider", "model", "direction"],
)
provider_cost = Counter(
    "imprimatur_provider_cost_dollars_total",
    "What AI providers' answers cost, in US dollars, as far as prices are known.",
    ["provider", "model"],
)
circuit = Gauge(
    "imprimatur_provider_circuit_state",
    "1 for where the circuit breaker before an AI provider stands: closed, open, trying (the next call decides).",
    ["provider", "circuit"],
)
circuit_openings = Counter(
    "imprimatur_provider_circuit_openings_total",
    "Times that an AI provider was left alone because it kept failing.",
    ["provider"],
)
image_bytes = Counter(
    "imprimatur_image_bytes_total",
    "Bytes of creatives' images, by where they were: inline, uploaded, fetched.",
    ["source"],
)
image_fetch_seconds = Histogram(
    "imprimatur_image_fetch_duration_seconds",
    "Duration of fetches of images from URLs, by outcome: fetched, refused (for good), unavailable (this time).",
    ["outcome"],
    buckets=_FAST,
)
images_decoded = Counter(
    "imprimatur_images_decoded_total",
    "Images looked at, by outcome: decoded, refused (no image, or too large), died (its process), timed_out.",
    ["outcome"],
)
evidence_lookups = Counter(
    "imprimatur_evidence_lookups_total",
    "Questions for evidence of an equal creative, by answer: hit, miss (an engine looks), wait (another job looks).",
    ["outcome"],
)
fenced_writes = Counter(
    "imprimatur_fenced_writes_total", "Results discarded because the job was cancelled or taken over."
)

# --- notifier --------------------------------------------------------------------------------------------
webhook_attempts = Counter(
    "imprimatur_webhook_attempts_total",
    "Webhook posts, by outcome: delivered, refused (an HTTP status), failed (no answer), blocked (address).",
    ["outcome"],
)
webhooks_unsigned = Counter(
    "imprimatur_webhook_unsigned_total",
    "Times that a delivery could not be signed, its secret being gone or sealed with another key; no attempt is spent.",
)
webhook_seconds = Histogram("imprimatur_webhook_duration_seconds", "Duration of webhook posts.", buckets=_FAST)
webhook_lag_seconds = Histogram(
    "imprimatur_webhook_lag_seconds", "From an outcome to the first attempt at telling it.", buckets=_SLOW
)
webhooks_abandoned = Counter(
    "imprimatur_webhook_deliveries_abandoned_total", "Deliveries given up after their last attempt."
)
webhook_deliveries_pending = DatabaseGauge("imprimatur_webhook_deliveries_pending", "Deliveries not yet made.")
webhooks_pending = DatabaseGauge("imprimatur_webhook_events_pending", "Outcomes whose message is not yet stored.")
webhook_oldest_untried_seconds = DatabaseGauge(
    "imprimatur_webhook_oldest_untried_age_seconds", "Age of the oldest delivery that was never attempted."
)

# --- everywhere ------------------------------------------------------------------------------------------
build_info = Gauge("imprimatur_build_info", "Always 1: which service this process is.", ["service", "version"])
outbox_backlog = DatabaseGauge("imprimatur_outbox_messages", "Messages written and not yet confirmed by the broker.")
outbox_published = Counter(
    "imprimatur_outbox_published_total",
    "Messages handed to the broker, by result: confirmed, failed.",
    ["result"],
)
messages_consumed = Counter(
    "imprimatur_broker_deliveries_total",
    "Broker messages received, by queue and whether redelivered.",
    ["queue", "redelivered"],
)
messages_set_aside = Counter(
    "imprimatur_broker_messages_set_aside_total", "Broker messages that this version cannot read.", ["queue"]
)
broker_connected = Gauge("imprimatur_broker_connected", "1 while the broker connection stands.")
broker_consuming = Gauge(
    "imprimatur_broker_consuming",
    "1 while the broker has confirmed every consumer of the reviewer, or of the notifier, in this process.",
    ["service"],
)
database_connections = Gauge("imprimatur_database_connections_in_use", "Database connections checked out.")
database_pool_size = Gauge("imprimatur_database_pool_size", "Database connections that this process may have.")
loop_failures = Counter(
    "imprimatur_background_failures_total",
    "Passes of background loops that failed and will be tried again.",
    ["loop"],
)
spans_dropped = Counter(
    "imprimatur_spans_dropped_total",
    "Finished spans that were not sent, by reason: queue_full, not_sent (the collector did not take them).",
    ["reason"],
)

# --- at zero from the first scrape on ----------------------------------------------------------------------
_TYPES = tuple(JobType)
_PRIORITIES = tuple(priority.name.lower() for priority in Priority)

for _labels in product(_TYPES, _PRIORITIES):
    jobs_submitted.labels(*_labels)
    submit_to_start_seconds.labels(*_labels)
    submit_to_end_seconds.labels(*_labels)
for _labels in product(_TYPES, (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.AWAITING_REVIEW)):
    jobs_finished.labels(*_labels)
#: Why attempts are postponed; it stands on a job only if its deadline leaves no time for another try.
POSTPONEMENTS = ("turn_awaited", "provider_paused")
#: What attempts fail with, as far as this version knows; UnreviewableInput is no failure of ours.
ATTEMPT_ERRORS = (
    *(fault.code for fault in (AttemptError, TransientError, TimedOut, PermanentError, BudgetExhausted)),
    *(fault.code for fault in (Postponed, RateLimited, NotBegun)),
    *("engine_died", "engine_failed", "engine_not_started", "invalid_answer", "refused", "too_long", "workers_lost"),
    *("provider_credentials", "provider_error", "provider_model", "provider_quota", "provider_rejected"),
    *("provider_timeout", "provider_unreachable", "image_decoder_died", "image_unavailable", *POSTPONEMENTS),
)
#: What clean-up removes: tables, and request ids.
ROWS_REMOVED = (
    *("jobs", "job_events", "attempts", "webhook_messages", "webhook_deliveries", "webhook_attempts", "request_ids"),
    *("job_assets", "assets", "evidence"),
)
for _type in _TYPES:
    for _code in ATTEMPT_ERRORS:
        attempt_errors.labels(_type, _code)
    for _ended in AttemptOutcome:
        attempt_seconds.labels(_type, _ended)
for _decision_and_overrides in product(("approved", "rejected"), ("true", "false")):
    human_decisions.labels(*_decision_and_overrides)
for _decision in ("approved", "rejected"):
    jobs_redecided.labels(_decision)
for _mode in Mode:
    policy_activations.labels(_mode)
for _claim in ("claimed", "released", "expired"):
    review_claims.labels(_claim)
for _appeal in ("made", "upheld", "overturned"):
    appeals.labels(_appeal)
for _agreement_and_trigger in product(Agreement, Trigger):
    human_agreement.labels(*_agreement_and_trigger)
for _priority in _PRIORITIES:
    time_to_decision_seconds.labels(_priority)
for _trigger in ("engine_error", "budget_exhausted"):
    decisions.labels("pending", _trigger)
for _loop in ("outbox", "lease-renewal", "giving-up", "webhook-messages", "webhook-delivery"):
    loop_failures.labels(_loop)  # failures beside those of a Loop, which sees to itself
for _limit in (
    *("submits_per_second", "open_jobs", "streams", "followed_jobs", "uploads", "asset_bytes"),
    *("all_streams", "all_followed_jobs", "request_bytes", "upload_bytes"),
):
    limit_refusals.labels(_limit)
for _way in ("at_once", "dispatcher", "again"):
    jobs_released.labels(_way)
for _result in ("claimed", "stale", "given_back"):
    claims.labels(_result)
for _type in _TYPES:
    reviewed_again.labels(_type)
    for _reason in POSTPONEMENTS:
        attempts_postponed.labels(_type, _reason)
for _source in ("inline", "uploaded", "fetched"):
    image_bytes.labels(_source)
for _outcome in ("fetched", "refused", "unavailable"):
    image_fetch_seconds.labels(_outcome)
for _outcome in ("decoded", "refused", "died", "timed_out"):
    images_decoded.labels(_outcome)
for _outcome in ("delivered", "refused", "failed", "blocked"):
    webhook_attempts.labels(_outcome)
for _result in ("confirmed", "failed"):
    outbox_published.labels(_result)
for _queue in (Queue.REVIEW_HIGH, Queue.REVIEW_NORMAL, Queue.REVIEW_LOW, Queue.NOTIFIER_EVENTS, "job.events"):
    messages_set_aside.labels(_queue)
for _outcome in ("hit", "miss", "wait"):
    evidence_lookups.labels(_outcome)
for _kind in ROWS_REMOVED:
    rows_removed.labels(_kind)
for _reason in ("queue_full", "not_sent"):
    spans_dropped.labels(_reason)
