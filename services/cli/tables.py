"""Messages as tables for people. Pure: messages in, Rich renderables out; every text goes through `plain`."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Protocol

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.output import moment, plain
from cli.pictures import dimensions_of
from imprimatur.budgets import MICROS
from imprimatur.client import is_terminal
from imprimatur.v1.creative_pb2 import (
    Category,
    Confidence,
    Creative,
    CreativeImage,
    Decision,
    Part,
    PolicyTrigger,
    Recommendation,
    ReusedEvidence,
)
from imprimatur.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_RUNNING,
    AppealOutcome,
    AttemptOutcome,
    Job,
    JobEvent,
    JobState,
    Priority,
)
from imprimatur.v1.job_service_pb2 import RetryJobsResponse, ReviewJobsAgainResponse
from imprimatur.v1.review_service_pb2 import PendingReview

_IDS = frozenset({"JOB", "ENDPOINT"})
_ID_WIDTH = 36

_STYLES = {
    "succeeded": "green",
    "approved": "green",
    "running": "cyan",
    "failed": "red",
    "rejected": "red",
    "awaiting_review": "yellow",
    "pending": "yellow",
    "cancelled": "dim",
}


class Named(Protocol):
    """An enum of the contract."""

    @property
    def DESCRIPTOR(self) -> EnumDescriptor: ...


def word(kind: Named, value: int) -> str:
    """ "awaiting_review" for JOB_STATE_AWAITING_REVIEW; empty for unspecified, the number if it is newer than us."""
    names = {number: known.name for number, known in kind.DESCRIPTOR.values_by_number.items()}
    if value == 0 or value not in names:
        return str(value or "")
    return names[value].removeprefix(names[0].removesuffix("UNSPECIFIED")).lower()


def when(time: Timestamp) -> str:
    """In the reader's time zone; empty for none."""
    if not time.ByteSize():
        return ""
    return moment(datetime.fromtimestamp(time.seconds, UTC))


def seconds(message: Message, field: str) -> str:
    """A duration field such as "1.2 s", "4 min" or "3 h"; empty where it is absent."""
    if not message.HasField(field):
        return ""
    length: Duration = getattr(message, field)
    total = length.seconds + length.nanos / 1e9
    if total < 120:
        return f"{total:.3g} s"
    return f"{total / 60:.0f} min" if total < 7200 else f"{total / 3600:.1f} h"


def table(*columns: str) -> Table:
    """An empty table. Ids are never cut, for they are needed whole; what is last gives way first."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns[:-1]:
        made.add_column(column, no_wrap=True, min_width=_ID_WIDTH if column in _IDS else None)
    made.add_column(columns[-1], overflow="fold")
    return made


def state_text(state: int) -> Text:
    """A state's word in its colour."""
    return coloured(word(JobState, state))


def coloured(text: str) -> Text:
    """A word in its colour."""
    return plain(text, _STYLES.get(text, ""))


def jobs(found: Iterable[Job]) -> Table:
    """One line a job."""
    made = table("JOB", "STATE", "SUBJECT", "DECISION", "CREATED", "WHY")
    for job in found:
        made.add_row(
            plain(job.id),
            state_text(job.state),
            plain(job.subject_id),
            coloured(decision_of(job)),
            plain(when(job.create_time)),
            plain(progress_of(job) or why(job)),
        )
    return made


def retried(answer: RetryJobsResponse) -> Table:
    """One line a new job."""
    made = table("JOB", "RETRIES")
    for pair in answer.retried:
        made.add_row(plain(pair.job_id), plain(pair.retry_of))
    return made


def queued_again(answer: ReviewJobsAgainResponse) -> Table:
    """One line a job."""
    made = table("JOB")
    for job_id in answer.job_ids:
        made.add_row(plain(job_id))
    return made


def board(watched: Iterable[Job]) -> Table:
    """One short line a job, to be looked at while it changes."""
    made = table("JOB", "STATE", "SUBJECT")
    made.add_column("NOW", overflow="ellipsis")
    for job in watched:
        why = word(PolicyTrigger, job.creative_review.ai_review.policy_triggered)
        outcome = (decision_of(job) if is_terminal(job) else why) or job.error.code
        made.add_row(plain(job.id), state_text(job.state), plain(job.subject_id), plain(progress_of(job) or outcome))
    return made


def decision_of(job: Job) -> str:
    """ "approved", "rejected", "pending" or nothing; nobody decides any more on what was cancelled."""
    return "" if job.state == JOB_STATE_CANCELLED else word(Decision, job.creative_review.decision)


def progress_of(job: Job) -> str:
    """Such as "40% examining" while it runs."""
    return f"{job.progress.percent}% {job.progress.stage}".strip() if job.state == JOB_STATE_RUNNING else ""


def why(job: Job) -> str:
    """Why it stands as it does: an error, what took its place, or the reason of who decided."""
    if job.HasField("error"):
        return f"{job.error.code}: {job.error.message}"
    if job.superseded_by:
        return f"superseded by {job.superseded_by}"
    if job.state == JOB_STATE_CANCELLED:
        return ""
    review = job.creative_review
    return review.human_review.reason or review.ai_review.reason


def job_in_full(job: Job) -> RenderableType:
    """All there is to know of one job."""
    parts: list[RenderableType] = [facts(_job_facts(job))]
    if job.HasField("creative_review"):
        parts.append(review_of(job))
    if job.attempt_history:
        parts.append(_attempts(job))
    return sections(*parts)


def sections(*parts: RenderableType) -> Group:
    """The parts under each other, with a blank line between."""
    first, *rest = parts
    return Group(first, *(item for part in rest for item in (Text(), part)))


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Names and values under each other; empty values are left out."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(no_wrap=True, style="bold")
    made.add_column(overflow="fold")
    for name, value in pairs:
        text = value if isinstance(value, Text) else plain(value)
        if text.plain:
            made.add_row(name, text)
    return made


def _job_facts(job: Job) -> Iterable[tuple[str, object]]:
    yield "job", job.id
    yield "state", state_text(job.state)
    yield "subject", job.subject_id
    yield "priority", word(Priority, job.priority)
    yield "progress", " ".join(filter(None, (progress_of(job), job.progress.message)))
    yield "error", f"{job.error.code}: {job.error.message}" if job.HasField("error") else ""
    yield "attempts", f"{job.attempts} of {job.max_attempts}"
    yield "created", when(job.create_time)
    yield "started", when(job.start_time)
    yield "finished", when(job.finish_time)
    yield "took", seconds(job, "actual_duration")
    yield "user", job.user_id
    yield "labels", ", ".join(f"{key}={value}" for key, value in sorted(job.labels.items()))
    yield "parameters", ", ".join(f"{key}={value}" for key, value in sorted(job.parameters.items()))
    yield "request id", job.request_id
    yield "callback", job.callback_url
    yield "retry of", job.retry_of
    yield "appeal of", job.appeal_of
    yield from appeal_facts(job)
    yield "superseded by", job.superseded_by
    yield "supersedes", job.supersedes
    yield "key", job.concurrency_key
    yield "revision", job.revision if job.HasField("revision") else ""


def review_of(job: Job) -> RenderableType:
    """What the AI made of a creative, and what a person did."""
    ai, human = job.creative_review.ai_review, job.creative_review.human_review
    by_the_ai = "the AI had said" if job.state == JOB_STATE_CANCELLED else "by the AI"
    engine = ai.evidence.engine
    scores = sorted(ai.evidence.categories, key=lambda scored: -scored.score)
    pairs = [
        ("decision", coloured(decision_of(job))),
        (by_the_ai, f"{word(Decision, ai.decision)} ({word(PolicyTrigger, ai.policy_triggered)}): {ai.reason}"),
        ("confidence", f"{word(Confidence, ai.confidence)} {ai.confidence_score:.2f}" if ai.confidence else ""),
        ("advice", word(Recommendation, ai.evidence.recommendation)),
        ("policy", f"version {ai.policy_version}" if ai.policy_version else ""),
        ("engine", " ".join(filter(None, (engine.name, engine.version, engine.model)))),
        ("found for", _source(ai.reused) if ai.HasField("reused") else ""),
        ("categories", ", ".join(f"{word(Category, item.category)} {item.score:.2f}" for item in scores[:5])),
        ("criteria", ", ".join(f"{item.name} {item.score:.2f}" for item in ai.evidence.criteria)),
        ("not examined", ", ".join(word(Part, part) for part in ai.evidence.unexamined)),
        (
            "by a person",
            f"{word(Decision, human.decision)} by {human.reviewer}: {human.reason}" if human.decision else "",
        ),
    ]
    if not ai.evidence.findings:
        return facts(pairs)
    findings = table("WHERE", "CATEGORY", "SCORE", "FINDING")
    for finding in ai.evidence.findings:
        told = f"“{finding.quote}” {finding.explanation}" if finding.quote else finding.explanation
        findings.add_row(
            plain(finding.field), plain(word(Category, finding.category)), f"{finding.score:.2f}", plain(told)
        )
    return sections(facts(pairs), findings)


def _source(reused: ReusedEvidence) -> str:
    return f"the equal creative of job {reused.job_id}" if reused.job_id else "an equal creative of another user"


def _attempts(job: Job) -> Table:
    made = table("ATTEMPT", "WORKER", "STARTED", "OUTCOME", "ENGINE", "TOKENS", "COST", "ERROR")
    for attempt in job.attempt_history:
        tokens = attempt.input_tokens + attempt.output_tokens
        made.add_row(
            str(attempt.claim_no),
            plain(attempt.worker),
            when(attempt.start_time),
            plain(word(AttemptOutcome, attempt.outcome) or "running"),
            plain(attempt.engine),
            str(tokens or ""),
            f"${attempt.cost_micros / MICROS:.6f}" if attempt.cost_micros else "",
            plain(f"{attempt.error.code}: {attempt.error.message}" if attempt.HasField("error") else ""),
        )
    return made


def events(found: Iterable[JobEvent]) -> Table:
    """A job's history."""
    made = table("VERSION", "TIME", "EVENT", "STATE", "DETAILS")
    for event in found:
        details = ", ".join(f"{key}={value}" for key, value in sorted(event.details.items()))
        made.add_row(str(event.version), when(event.time), plain(event.kind), state_text(event.state), plain(details))
    return made


def reviews(found: Iterable[PendingReview]) -> Table:
    """What waits for a person."""
    made = table("JOB", "SUBJECT", "PRIORITY", "WAITING SINCE", "DUE", "CLAIMED BY", "WHY")
    for review in found:
        made.add_row(
            plain(review.job.id),
            plain(review.job.subject_id),
            plain(word(Priority, review.job.priority)),
            when(review.waiting_since),
            due_text(review),
            plain(review.claimed_by),
            plain(_appeal_of(review.job) or why(review.job)),
        )
    return made


def due_text(review: PendingReview) -> Text:
    """By when it is to be decided, in red once that has passed."""
    return plain(when(review.due_at), "red" if review.overdue else "")


def _appeal_of(job: Job) -> str:
    return f"an appeal: {job.appeal.reason}" if job.HasField("appeal") else ""


def appeal_facts(job: Job) -> Iterable[tuple[str, object]]:
    """What is appealed against, and why."""
    if job.HasField("appeal"):
        appeal = job.appeal
        former = appeal.former_reviewer or "the AI"
        yield "appeal", f"{appeal.reason} ({appeal.appellant})"
        yield "against", f"{word(Decision, appeal.former_decision)} by {former}: {appeal.former_reason}"
        yield "outcome", word(AppealOutcome, appeal.outcome)


def review_in_full(review: PendingReview) -> RenderableType:
    """What is to be decided, and what the AI made of it."""
    claim = f"{review.claimed_by} until {when(review.claimed_until)}" if review.claimed_by else ""
    waiting = facts(
        [
            ("waiting since", when(review.waiting_since)),
            ("due", due_text(review)),
            ("claimed by", claim),
            ("claim token", review.claim_token),
            *appeal_facts(review.job),
        ]
    )
    return sections(creative_in_full(review.creative), waiting, job_in_full(review.job))


def creative_in_full(creative: Creative) -> Table:
    """What is to be decided."""
    return facts(_creative_facts(creative))


def _creative_facts(creative: Creative) -> Iterable[tuple[str, object]]:
    yield "creative", creative.creative_id
    for name in ("name", "format", "advertiser", "headline", "body", "call_to_action", "landing_page_url", "language"):
        yield name.replace("_", " "), getattr(creative, name)
    yield "declared", ", ".join(word(Category, category) for category in creative.declared_categories)
    yield "images", ", ".join(_image(image) for image in creative.images)
    yield "videos", ", ".join(creative.video_urls)
    yield "audio", ", ".join(creative.audio_urls)


def _image(image: CreativeImage) -> str:
    size = dimensions_of(image.data) if image.data else None
    told = [image.url, f"asset {image.asset_id}" if image.asset_id else "", f"{size[0]}×{size[1]}" if size else ""]
    about = ", ".join(filter(None, told))
    return f"{image.name or 'unnamed'} ({about})" if about else image.name or "unnamed"
