"""The tables. Migrations under `migrations/` make them; a test holds the two to the same schema.

Indexes are partial wherever only live rows are looked for, so that history costs the hot path nothing.
"""

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import BigInteger

from imprimatur.storage.clock import Instant

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: Plain JSON values; binary JSON on PostgreSQL. None is SQL's NULL, not JSON's.
Document = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def _partial(name: str, *columns: Column[object], where: str, unique: bool = False) -> Index:
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


tenants = Table(
    "tenants",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("policy_version", Integer, nullable=False),  # the live one
    Column("created_at", Instant, nullable=False),
    # Its own limits. None: as the gateways' settings say; 0: no limit.
    Column("submits_per_second", Float),
    Column("open_jobs", Integer),
    Column("running_jobs", Integer),
    Column("streams", Integer),
    Column("asset_bytes", BigInteger),
    # Its own daily budget at AI providers. None: as the reviewers' settings say; 0: no limit.
    Column("daily_tokens", BigInteger),
    Column("daily_cost_micros", BigInteger),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("user_id", Text, nullable=False),  # empty: not bound to a user
    Column("key_hash", LargeBinary, nullable=False, unique=True),  # SHA-256 of the whole key
    Column("created_at", Instant, nullable=False),
    Column("revoked_at", Instant),
    Index("ix_api_keys_tenant_id", "tenant_id"),
)

policies = Table(
    "policies",
    metadata,
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("document", Document, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("created_by", Text),  # none, as the note: made before that was kept
    Column("note", Text),
    Column("key_id", Uuid),  # that it was made with; none, as its name: made at the database, or before that was kept
    Column("key_name", Text),
)

#: Which version was live from when on.
policy_activations = Table(
    "policy_activations",
    metadata,
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # of the tenant's, from 1 on
    Column("from_version", Integer),  # none: its first
    Column("to_version", Integer, nullable=False),
    Column("at", Instant, nullable=False),
    Column("activated_by", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("key_id", Uuid),  # none, as its name: at the database, or before that was kept
    Column("key_name", Text),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("type", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("request_id", Text),
    Column("content_hash", LargeBinary, nullable=False),  # SHA-256 over the request's content
    Column("subject_id", Text, nullable=False),
    Column("labels", Document, nullable=False),
    Column("parameters", Document, nullable=False),  # masked
    Column("input", LargeBinary, nullable=False),
    Column("callback_url", Text, nullable=False),
    Column("max_attempts", SmallInteger, nullable=False),
    Column("attempts", SmallInteger, nullable=False),  # spent
    Column("losses", SmallInteger, nullable=False),  # workers lost on it; never counted as attempts
    Column("timeout_seconds", Float, nullable=False),
    Column("deadline_seconds", Float, nullable=False),  # as asked; a retry by hand asks the same again
    Column("run_at", Instant, nullable=False),
    Column("deadline_at", Instant, nullable=False),
    # Hand-over to a worker: a release puts it up for claiming, a claim fences every later write.
    Column("release_no", Integer, nullable=False),
    Column("released_at", Instant),
    Column("reissue_after_seconds", Float, nullable=False),
    Column("claim_no", Integer, nullable=False),
    Column("claim_id", Uuid),  # chosen by the worker, so that a lost answer can be asked for again
    Column("worker_id", Uuid),
    Column("lease_until", Instant),
    # What can be seen of it.
    Column("progress_percent", SmallInteger, nullable=False),
    Column("progress_stage", Text, nullable=False),
    Column("progress_message", Text, nullable=False),
    Column("error", Document),
    Column("decision", Text, nullable=False),
    Column("policy_triggered", Text, nullable=False),
    Column("categories", Document),  # declared or found, when the machine was done with it
    Column("result", LargeBinary),
    Column("result_count", Integer, nullable=False),
    Column("retry_of", Uuid),
    Column("appeal_of", Uuid),
    Column("appeal", Document),  # of an appeal: its reason, what was decided before, who must not decide it
    Column("superseded_by", Uuid),
    Column("supersedes", Uuid),
    Column("concurrency_key", Text),  # of `imprimatur.keys`
    Column("revision", BigInteger),
    Column("evidence_since", Instant),  # evidence that was begun before will not do
    Column("waits_for", LargeBinary),  # while it is queued: the key of evidence that an equal job is to bring
    Column("estimated_seconds", Float),
    Column("traceparent", Text),  # the span that accepted it, as W3C Trace Context writes it
    # A person's hold on it while it waits for one.
    Column("held_by", Text, nullable=False),
    Column("held_until", Instant),
    Column("hold_token", Uuid),  # of the present hold
    Column("hold_key_id", Uuid),  # the API key that it was made with
    Column("awaiting_since", Instant),  # it was referred to people; stays when they have decided
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    UniqueConstraint("tenant_id", "request_id"),
    Index("ix_jobs_tenant_id_id", "tenant_id", "id"),
    Index("ix_jobs_tenant_id_subject_id_id", "tenant_id", "subject_id", "id"),
)
_partial(
    "ix_jobs_run_at",
    jobs.c.run_at,
    where="state = 'queued' AND released_at IS NULL AND run_at IS NOT NULL",
)
_partial(  # who looks for turns says it in these words, for which no other index over live rows can be taken
    "ix_jobs_in_line",
    jobs.c.priority,
    jobs.c.tenant_id,
    jobs.c.run_at,
    jobs.c.id,
    where="coalesce(state, '') = 'queued' AND released_at IS NULL",
)
_partial("ix_jobs_released", jobs.c.released_at, where="state = 'queued' AND released_at IS NOT NULL")
_partial("ix_jobs_deadline", jobs.c.deadline_at, where="state = 'queued'")
_partial("ix_jobs_leased", jobs.c.lease_until, where="state = 'running'")
_partial(
    "ix_jobs_waiting",
    jobs.c.tenant_id,
    jobs.c.priority,
    jobs.c.awaiting_since,
    jobs.c.id,
    where="state = 'awaiting_review'",
)
_partial("ix_jobs_held", jobs.c.held_until, where="state = 'awaiting_review' AND held_until IS NOT NULL")
_partial(  # the gauges count by it, too, and need no row of the table for that
    "ix_jobs_awaiting_since",
    jobs.c.awaiting_since,
    jobs.c.type,
    jobs.c.priority,
    where="state = 'awaiting_review'",
)
_partial("ix_jobs_unfinished", jobs.c.tenant_id, jobs.c.id, where="state IN ('queued', 'running', 'awaiting_review')")
_partial("ix_jobs_finished", jobs.c.tenant_id, jobs.c.finished_at, where="finished_at IS NOT NULL")
_partial("ix_jobs_open", jobs.c.tenant_id, where="state IN ('queued', 'running')")
_partial("ix_jobs_retryable", jobs.c.tenant_id, jobs.c.id, where="state IN ('failed', 'cancelled')")
_partial("ix_jobs_retry_of", jobs.c.retry_of, where="retry_of IS NOT NULL")
_partial("ix_jobs_appeal_of", jobs.c.appeal_of, where="appeal_of IS NOT NULL")
_partial(  # against one decision at most one appeal is open
    "uq_jobs_open_appeal",
    jobs.c.appeal_of,
    where="appeal_of IS NOT NULL AND state IN ('queued', 'running', 'awaiting_review')",
    unique=True,
)
_partial(  # of one key at most one job is unfinished
    "uq_jobs_live_key",
    jobs.c.tenant_id,
    jobs.c.concurrency_key,
    where="concurrency_key IS NOT NULL AND state IN ('queued', 'running', 'awaiting_review')",
    unique=True,
)
_partial("ix_jobs_waits_for", jobs.c.waits_for, jobs.c.id, where="state = 'queued' AND waits_for IS NOT NULL")
_partial("ix_jobs_revision", jobs.c.tenant_id, jobs.c.concurrency_key, jobs.c.revision, where="revision IS NOT NULL")

#: Further request ids that were answered with a job: it was unfinished, and its key and its content were the same.
request_aliases = Table(
    "request_aliases",
    metadata,
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("job_id", Uuid, ForeignKey("jobs.id"), nullable=False),
    Index("ix_request_aliases_job_id", "job_id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", Uuid, ForeignKey("jobs.id"), primary_key=True),
    Column("claim_no", Integer, primary_key=True, autoincrement=False),
    Column("worker", Text, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Column("returned_at", Instant),  # its worker, given up as lost, came back
    Column("outcome", Text),
    Column("error", Document),
    Column("error_code", Text),
    Column("engine", Text, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
    Column("reused_from", Uuid),  # the job whose evidence it took
)
_partial("ix_attempts_paid", attempts.c.finished_at, where="input_tokens > 0")
_partial("ix_attempts_failed", attempts.c.finished_at, where="error_code IS NOT NULL")

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", Uuid, ForeignKey("jobs.id"), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("details", Document, nullable=False),
    Column("webhook_pending", Boolean, nullable=False),
)
_partial("ix_job_events_webhook_pending", job_events.c.at, where="webhook_pending")

outbox = Table(
    "outbox",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("exchange", Text, nullable=False),
    Column("routing_key", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("leased_until", Instant),
    Index("ix_outbox_created_at", "created_at"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("running", Integer, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("seen_at", Instant, nullable=False),
    Column("locked_out_until", Instant),  # until then it may hold jobs whose leases it could not renew
)

gateways = Table(
    "gateways",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("seen_at", Instant, nullable=False),
)

#: When the dispatcher put up jobs of each tenant for the last time. Apart from `tenants` and without reference to it,
#: so that whoever locks a tenant holds up nobody's turn.
turns = Table(
    "turns",
    metadata,
    Column("tenant_id", Uuid, primary_key=True),
    Column("served_at", Instant, nullable=False),
)

#: An image of a tenant. Its bytes are in a table of their own.
assets = Table(
    "assets",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("digest", LargeBinary, nullable=False),  # SHA-256 of the content
    Column("media_type", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("used_at", Instant, nullable=False),  # uploaded or named by a submit, for the last time
    Index("uq_assets_tenant_id_digest", "tenant_id", "digest", unique=True),
    Index("ix_assets_tenant_id_size_bytes", "tenant_id", "size_bytes"),
)

asset_contents = Table(
    "asset_contents",
    metadata,
    Column("asset_id", Uuid, ForeignKey("assets.id", ondelete="CASCADE"), primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

#: Which images a job names; an image is kept for as long as they need it. It may be gone before its job.
job_assets = Table(
    "job_assets",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Index("ix_job_assets_tenant_id_digest", "tenant_id", "digest"),
)

#: Outlives its job, and so says itself what was decided on.
human_decisions = Table(
    "human_decisions",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("job_id", Uuid, nullable=False),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("reviewer", Text, nullable=False),
    Column("decision", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("ai_recommendation", Text, nullable=False),  # empty: the AI gave none
    Column("overrides_ai", Boolean, nullable=False),
    Column("decided_at", Instant, nullable=False),
    Column("job_type", Text),
    Column("subject_id", Text),
    Column("input_hash", LargeBinary),  # SHA-256 of the task as it was decided on
    Column("submitted_by", Text),  # the job's user
    Column("policy_triggered", Text),  # why it was given to a person
    Column("agreement", Text),
    Column("categories", Document),  # declared or found
    Column("awaiting_since", Instant),  # people were asked
    Column("appeal_of", Uuid),
    Column("person_known", Boolean),  # the key or the request told who decided; else `reviewer` is the key's name
    Index("ix_human_decisions_job_id", "job_id"),
    Index("ix_human_decisions_tenant_id_decided_at", "tenant_id", "decided_at"),
)

#: Who did what in the human queue. Outlives its jobs; the database itself refuses to change or remove a row.
audit_entries = Table(
    "audit_entries",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("at", Instant, nullable=False),
    Column("action", Text, nullable=False),
    Column("job_id", Uuid, nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("submitted_by", Text, nullable=False),  # the job's user
    Column("person", Text, nullable=False),
    Column("key_id", Uuid),  # none: nobody did it
    Column("key_name", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("details", Document, nullable=False),
    Index("ix_audit_entries_tenant_id_id", "tenant_id", "id"),
    Index("ix_audit_entries_job_id_id", "job_id", "id"),
    Index("ix_audit_entries_tenant_id_person_id", "tenant_id", "person", "id"),
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("url", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("event_types", Document, nullable=False),  # empty: all
    Column("created_at", Instant, nullable=False),
    Column("deleted_at", Instant),
)
_partial("ix_webhook_endpoints_tenant_id", webhook_endpoints.c.tenant_id, where="deleted_at IS NULL")

webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("endpoint_id", Uuid, ForeignKey("webhook_endpoints.id")),  # none: the tenant's default secret
    Column("ciphertext", LargeBinary, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Index("ix_webhook_secrets_tenant_id_endpoint_id", "tenant_id", "endpoint_id"),
    # One present default secret per tenant.
    Index(
        "uq_webhook_secrets_default",
        "tenant_id",
        unique=True,
        postgresql_where=text("endpoint_id IS NULL AND expires_at IS NULL"),
        sqlite_where=text("endpoint_id IS NULL AND expires_at IS NULL"),
    ),
)

webhook_messages = Table(
    "webhook_messages",
    metadata,
    Column("id", Uuid, primary_key=True),  # the webhook-id
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("job_id", Uuid, ForeignKey("jobs.id"), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", Instant, nullable=False),
    UniqueConstraint("job_id", "version"),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("message_id", Uuid, ForeignKey("webhook_messages.id"), nullable=False),
    Column("endpoint_id", Uuid, ForeignKey("webhook_endpoints.id")),  # none: the job's callback_url
    Column("url", Text, nullable=False),
    Column("lane", Text, nullable=False),  # tenant and host: what waits behind one another
    Column("state", Text, nullable=False),  # pending, delivered, abandoned
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", Instant, nullable=False),
    Column("leased_until", Instant),
    Column("finished_at", Instant),
    Index("ix_webhook_deliveries_message_id", "message_id"),
)
_partial(
    "ix_webhook_deliveries_due",
    webhook_deliveries.c.lane,
    webhook_deliveries.c.next_attempt_at,
    where="state = 'pending'",
)
_partial("ix_webhook_deliveries_endpoint_id", webhook_deliveries.c.endpoint_id, where="state = 'pending'")

webhook_attempts = Table(
    "webhook_attempts",
    metadata,
    Column("delivery_id", Uuid, ForeignKey("webhook_deliveries.id"), primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("status_code", Integer),
    Column("error", Text, nullable=False),
    Column("duration_ms", Integer, nullable=False),
)

#: What an engine found, for equal creatives to come; or, without content, who is about to find it (`job_id` and
#: `claim_no`, for as long as that claim stands; no job: nobody).
evidence = Table(
    "evidence",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("key", LargeBinary, nullable=False),  # of `imprimatur.reuse`
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("job_type", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("engine_version", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("policy_version", Integer, nullable=False),  # in force when it was begun
    Column("job_id", Uuid),
    Column("claim_no", Integer, nullable=False),
    Column("awaited", Boolean, nullable=False),  # jobs may wait for it
    Column("alone", Boolean, nullable=False),  # it was made and could not be kept: each job looks for itself
    Column("begun_at", Instant, nullable=False),
    Column("content", LargeBinary),  # the evidence as results have it
    Column("made_at", Instant),
    Column("expires_at", Instant, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),  # what it cost to make
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
    Column("hits", BigInteger, nullable=False),
    Index("uq_evidence_key", "key", unique=True),
    Index("ix_evidence_tenant_id_id", "tenant_id", "id"),
)
_partial("ix_evidence_job_id", evidence.c.job_id, where="job_id IS NOT NULL")

#: Rows of these are added, and never changed nor removed: the database refuses it, whoever asks.
RECORDS = (policies, policy_activations, human_decisions, audit_entries)

#: What a tenant spent at AI providers on the last day on which it did; tokens in and out together.
spending = Table(
    "spending",
    metadata,
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), primary_key=True),
    Column("day", Integer, nullable=False),  # since 1970, of UTC
    Column("tokens", BigInteger, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
)

#: Calls to AI providers that must lie apart from each other.
provider_turns = Table(
    "provider_turns",
    metadata,
    Column("provider", Text, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), primary_key=True),
    Column("job_type", Text, primary_key=True),
    Column("free_at", Instant, nullable=False),  # the next call may go then
    Column("ends_at", Instant, nullable=False),  # the first moment for which nobody was told to come back
)

#: One row: the pass of clean-up that is under way, over all gateways, and the last one that came to its end.
cleanup = Table(
    "cleanup",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Uuid),  # the process whose pass is under way
    Column("held_until", Instant),
    Column("succeeded_at", Instant),
    Column("forgotten_until", Instant),  # jobs that ended before have no request id any more
)
