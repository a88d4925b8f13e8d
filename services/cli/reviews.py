"""`imprimatur review`: what waits for a person, and the person's decision."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli import tables
from cli.arguments import JobIdArgument, LabelOption, SinceOption, UntilOption, Verdict, length
from cli.commands import CommandFailed, Session, client_command
from cli.filters import (
    AllOption,
    DryRunOption,
    FreshOption,
    SubjectOption,
    TriggerOption,
    UserOption,
    job_filter,
    require_one_way,
)
from cli.output import note
from cli.review_filters import filtered, taking
from imprimatur.client import Client
from imprimatur.v1.creative_pb2 import Creative
from imprimatur.v1.job_pb2 import JOB_STATE_AWAITING_REVIEW, JobState
from imprimatur.v1.review_service_pb2 import ListPendingReviewsResponse, PendingReview, ReviewFilter

app = typer.Typer(help="What the AI may not decide.")

_LARGEST_PAGE = 500

ReviewerOption = Annotated[str, typer.Option("--reviewer", help="Who; default: the key's user or name.")]
TokenOption = Annotated[
    str,
    typer.Option(
        "--token",
        help="Of your claim, as `claim` shows it; needed to decide what you hold. What was taken over is left alone.",
    ),
]
LeaseOption = Annotated[
    timedelta | None,
    typer.Option("--lease", parser=length, metavar="LENGTH", help="For how long: 10s to 8h. Default: 15m."),
]
ImagesOption = Annotated[
    Path | None, typer.Option("--save-images", metavar="FOLDER", help="Write the images there, to look at them.")
]


@client_command(app, "list")
@filtered
async def list_reviews(
    session: Session,
    *,
    wanted: ReviewFilter,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0: all.")] = 50,
) -> None:
    """List what waits for a person: what is overdue, then high priority, then what waits longest."""
    page_size = min(limit or _LARGEST_PAGE, _LARGEST_PAGE)
    found: list[PendingReview] = []
    async for review in session.client.pending_reviews(wanted, page_size=page_size):
        found.append(review)
        if len(found) == limit:
            break
    session.output.show(ListPendingReviewsResponse(reviews=found), lambda: tables.reviews(found))


@client_command(app, "show")
async def show(session: Session, *, job_id: JobIdArgument) -> None:
    """Show one review without taking it; also one that is decided."""
    review = PendingReview(job=await session.client.get(job_id))
    if review.job.state == JOB_STATE_AWAITING_REVIEW:
        async for waiting in session.client.pending_reviews(page_size=_LARGEST_PAGE):
            if waiting.job.id == review.job.id:
                review = waiting
                break
    else:
        note(f"does not wait for a person: it is {tables.word(JobState, review.job.state)}")
    session.output.show(review, lambda: tables.review_in_full(review))


@client_command(app, "claim")
async def claim(
    session: Session,
    *,
    job_id: JobIdArgument,
    lease: LeaseOption = None,
    reviewer: ReviewerOption = "",
    token: TokenOption = "",
    save_images: ImagesOption = None,
) -> None:
    """Take a review for a while, so that nobody else does the same; again with its token, to prolong it."""
    review = await session.client.claim_review(job_id, lease=lease, reviewer=reviewer, token=token)
    await _show_claimed(session, review, save_images)


@client_command(app, "next")
@taking
async def take_next(
    session: Session,
    *,
    wanted: ReviewFilter,
    lease: LeaseOption = None,
    reviewer: ReviewerOption = "",
    save_images: ImagesOption = None,
) -> None:
    """Take the most urgent review that nobody holds."""
    answer = await session.client.claim_next_review(wanted, lease=lease, reviewer=reviewer)
    if not answer.HasField("review"):
        raise CommandFailed("nothing that matches is free")
    await _show_claimed(session, answer.review, save_images)
    note(f"{answer.left} more wait")


async def _show_claimed(session: Session, review: PendingReview, save_images: Path | None) -> None:
    if save_images is not None:
        await save_all_images(session.client, review.creative, save_images)
    session.output.show(review, lambda: tables.review_in_full(review))


@client_command(app, "release")
async def release(
    session: Session,
    *,
    job_id: JobIdArgument,
    token: TokenOption = "",
    reviewer: ReviewerOption = "",
    of_anybody: Annotated[bool, typer.Option("--of-anybody", help="Whoever holds it; with an admin's key.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why. Kept on record.")] = "",
) -> None:
    """Give a review back, so that others may take it at once."""
    job = await session.client.release_review(job_id, token, reviewer=reviewer, of_anybody=of_anybody, reason=reason)
    session.output.show(job, lambda: tables.jobs([job]))


@client_command(app, "decide")
async def decide(
    session: Session,
    *,
    job_id: JobIdArgument,
    verdict: Annotated[Verdict, typer.Argument(metavar="approve|reject")],
    reason: Annotated[str, typer.Option("--reason", help="Why. Kept with the decision.")],
    reviewer: ReviewerOption = "",
    token: TokenOption = "",
) -> None:
    """Decide a review: approve or reject, with a reason."""
    job = await session.client.decide(job_id, verdict.decision, reason, reviewer=reviewer, token=token)
    session.output.show(job, lambda: tables.jobs([job]))


@client_command(app, "again")
async def again(
    session: Session,
    *,
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="JOB_ID", help="Jobs' ids.")] = None,
    all_of_them: AllOption = False,
    trigger: TriggerOption = None,
    label: LabelOption = None,
    user: UserOption = "",
    subject: SubjectOption = "",
    since: SinceOption = None,
    until: UntilOption = None,
    dry_run: DryRunOption = False,
    fresh: FreshOption = False,
) -> None:
    """Send back to the engine what it never looked at, because it failed (engine_error) or its budget was used up
    (budget_exhausted), also while a person was to decide everything (human_required, of which only that). What a person
    holds is left alone."""
    wanted = job_filter(trigger=trigger, label=label, user=user, subject=subject, since=since, until=until)
    require_one_way(bool(job_ids), all_of_them, wanted, "--trigger engine_error")
    answer = await session.client.review_again(wanted, job_ids=job_ids or (), dry_run=dry_run, fresh=fresh)
    session.output.show(answer, lambda: tables.queued_again(answer))
    note(f"{answer.left} to send back" if dry_run else f"{len(answer.job_ids)} sent back to the engine")
    if answer.held:
        note(f"{answer.held} left alone, because a person holds them now")
    passed_over = len(set(job_ids or ())) - len(answer.job_ids) - answer.held - answer.left
    if passed_over > 0:
        raise CommandFailed(
            f"{passed_over} passed over: they do not wait for a person because the engine failed, or are not yours; "
            "see 'imprimatur get JOB_ID'"
        )


async def save_all_images(client: Client, creative: Creative, folder: Path) -> None:
    """Write a creative's images into a folder. URLs are for people to open."""
    for number, image in enumerate(creative.images):
        if image.url:
            note(f"image {number} is at {image.url}, and was not saved")
        else:
            data = await client.download_asset(image.asset_id) if image.asset_id else image.data
            _save(data, number, folder)


def _save(data: bytes, number: int, folder: Path) -> None:
    """The names are the seller's: only the number and a harmless ending are used."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"image-{number}{_ending(data)}"
        file.write_bytes(data)
    except OSError as error:
        raise CommandFailed(f"{folder}: {error.strerror}") from error
    note(f"saved {file}")


def _ending(data: bytes) -> str:
    starts = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp"}
    return next((ending for start, ending in starts.items() if data.startswith(start)), ".bin")
