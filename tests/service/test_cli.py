"""The `imprimatur` command as people run it: a process of its own, against a scripted gateway on a real socket."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from cli import main
from imprimatur.v1.creative_pb2 import (
    CATEGORY_GAMBLING,
    CATEGORY_POLITICAL,
    DECISION_APPROVED,
    DECISION_PENDING,
    POLICY_TRIGGER_AUTO_APPROVE,
    POLICY_TRIGGER_ENGINE_ERROR,
    AiReview,
    Creative,
    CreativeImage,
    CreativeReviewResult,
    Evidence,
    Finding,
)
from imprimatur.v1.job_pb2 import (
    JOB_STATE_AWAITING_REVIEW,
    JOB_STATE_CANCELLED,
    JOB_STATE_FAILED,
    JOB_STATE_QUEUED,
    JOB_STATE_RUNNING,
    JOB_STATE_SUCCEEDED,
    JOB_TYPE_CREATIVE_REVIEW,
    PRIORITY_HIGH,
    Attempt,
    Job,
    JobError,
    JobEvent,
    JobState,
)
from imprimatur.v1.job_service_pb2 import (
    WHEN_BUSY_SUPERSEDE,
    BatchSubmitJobsRequest,
    BatchSubmitJobsResponse,
    BatchSubmitJobsResult,
    CancelJobResponse,
    DependencyStatus,
    GetJobResponse,
    GetStatsResponse,
    GetSystemStatusResponse,
    ListJobEventsResponse,
    ListJobsResponse,
    QueueStatus,
    RetriedJob,
    RetryJobResponse,
    RetryJobsResponse,
    ReviewJobsAgainResponse,
    SubmitJobResponse,
    TypeStats,
    WatchJobResponse,
    WatchJobsResponse,
)
from imprimatur.v1.review_service_pb2 import (
    ClaimReviewResponse,
    DecideReviewResponse,
    ListPendingReviewsResponse,
    PendingReview,
)
from imprimatur.v1.webhook_service_pb2 import (
    CreateWebhookEndpointResponse,
    DeleteWebhookEndpointResponse,
    ListWebhookEndpointsResponse,
    WebhookEndpoint,
)
from tests.patience import PATIENCE_SECONDS, happens
from tests.service.scripted import HANG, Fault, Script, serving

ROOT = Path(__file__).parents[2]
CREATIVES = ROOT / "examples" / "creatives"
KEY = "imp_the-key-that-nobody-may-see"
NO_SUCH_JOB = Fault(grpc.StatusCode.NOT_FOUND, "there is no job j9", "NOT_FOUND")


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IMPRIMATUR_")}
    return kept | {"PYTHONPATH": str(ROOT / "services"), "TZ": "UTC", "COLUMNS": "100"} | more


async def start(*arguments: str, cwd: Path | None = None, **variables: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cli",
        *arguments,
        cwd=cwd,
        env=environment(**variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> Ran:
    async with asyncio.timeout(PATIENCE_SECONDS):
        out, err = await process.communicate()
    assert process.returncode is not None
    return checked(Ran(process.returncode, out.decode(), err.decode()))


def checked(ran: Ran) -> Ran:
    """What no command may ever say, it has not said."""
    assert "Traceback" not in ran.err + ran.out
    assert KEY not in ran.err + ran.out
    return ran


async def run(*arguments: str, cwd: Path | None = None, **variables: str) -> Ran:
    return await ended(await start(*arguments, cwd=cwd, **variables))


Here = Callable[..., Ran]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    """Runs commands that need no server in this process: each process takes its second, and many are needed."""
    for variable in [name for name in os.environ if name.startswith("IMPRIMATUR_")]:
        monkeypatch.delenv(variable)
    for variable, value in {"TARGET": "127.0.0.1:1", "API_KEY": KEY}.items():
        monkeypatch.setenv(f"IMPRIMATUR_{variable}", value)
    before = structlog.get_config()

    def run_here(*arguments: str) -> Ran:
        return checked(Ran(main.run(list(arguments)), *capsys.readouterr()))

    yield run_here
    structlog.configure(**before)


class Against:
    """Runs commands against one scripted gateway."""

    def __init__(self, script: Script, port: int) -> None:
        self.script = script
        self.variables = {"IMPRIMATUR_TARGET": f"127.0.0.1:{port}", "IMPRIMATUR_API_KEY": KEY}

    async def __call__(self, *arguments: str, cwd: Path | None = None) -> Ran:
        return await run(*arguments, cwd=cwd, **self.variables)


@pytest.fixture
async def imprimatur() -> AsyncIterator[Against]:
    script = Script()
    async with serving(script) as port:
        yield Against(script, port)


def job(version: int = 1, state: JobState.ValueType = JOB_STATE_QUEUED, job_id: str = "j1", **more: Any) -> Job:
    return Job(id=job_id, version=version, state=state, subject_id="cr-1", **more)


def seen(version: int, state: JobState.ValueType, job_id: str = "j1") -> WatchJobResponse:
    return WatchJobResponse(job=job(version, state, job_id))


def accept_all(request: BatchSubmitJobsRequest) -> BatchSubmitJobsResponse:
    jobs = [
        Job(id=f"j{number}", version=1, state=JOB_STATE_QUEUED, subject_id=item.creative_review.creative.creative_id)
        for number, item in enumerate(request.items)
    ]
    return BatchSubmitJobsResponse(
        results=[BatchSubmitJobsResult(accepted=SubmitJobResponse(job=accepted)) for accepted in jobs]
    )


# --- submit ----------------------------------------------------------------------------------------------


async def test_a_folder_is_submitted_with_its_images_and_what_is_no_creative_is_skipped(imprimatur: Against) -> None:
    imprimatur.script.on("BatchSubmitJobs", accept_all)
    ran = await imprimatur(
        "submit", str(CREATIVES), "--priority", "high", "--label", "run=7", "--request-id-prefix", "r7-", "--json"
    )
    assert ran.code == 0, ran.err
    assert len(ran.json["results"]) == 48
    assert "skipped" in ran.err
    assert "expected.json" in ran.err
    items = [item for request in imprimatur.script.requests["BatchSubmitJobs"] for item in request.items]
    sofa = next(item for item in items if item.creative_review.creative.creative_id == "cr-2041")
    assert sofa.request_id == "r7-cr-2041"
    assert sofa.priority == PRIORITY_HIGH
    assert dict(sofa.labels) == {"run": "7"}
    image = sofa.creative_review.creative.images[0]
    assert image.name == "sofa.png"
    assert image.data == (CREATIVES / "images" / "sofa.png").read_bytes()


async def test_a_creative_is_submitted_with_a_key_and_a_revision(imprimatur: Against) -> None:
    imprimatur.script.on("BatchSubmitJobs", accept_all, accept_all)
    file = str(CREATIVES / "02-emergency-plumber.json")
    wrong = await imprimatur("submit", file, "--when-busy", "supersede")
    assert (wrong.code, "--when-busy goes with --key" in wrong.err) == (2, True)
    assert (await imprimatur("submit", file, "--key", "k", "--when-busy", "supersede", "--revision", "0")).code == 0
    assert (await imprimatur("submit", file)).code == 0
    keyed, plain = [request.items[0] for request in imprimatur.script.requests["BatchSubmitJobs"]]
    assert (keyed.concurrency_key, keyed.when_busy, keyed.revision) == ("k", WHEN_BUSY_SUPERSEDE, 0)
    assert keyed.HasField("revision")
    assert (plain.concurrency_key, plain.when_busy, plain.HasField("revision")) == ("", 0, False)


async def test_a_job_is_shown_with_its_key_and_what_took_whose_place(imprimatur: Against) -> None:
    shown = job(supersedes="j0", superseded_by="j2", concurrency_key="nightly", revision=7)
    imprimatur.script.on("GetJob", GetJobResponse(job=shown))
    ran = await imprimatur("get", "j1")
    lines = {line.strip() for line in ran.out.splitlines()}
    for expected in (("superseded by", "j2"), ("supersedes", "j0"), ("key", "nightly"), ("revision", "7")):
        assert any(line.startswith(expected[0]) and line.endswith(expected[1]) for line in lines), ran.out


async def test_those_refused_are_named_on_standard_error_and_the_rest_is_accepted(imprimatur: Against) -> None:
    refusal = Fault(grpc.StatusCode.INVALID_ARGUMENT, "items[1].task: too long", "INVALID_FIELD", field="items[1].task")
    answer = BatchSubmitJobsResponse(
        results=[
            BatchSubmitJobsResult(accepted=SubmitJobResponse(job=job())),
            BatchSubmitJobsResult(error=refusal.status()),
        ]
    )
    imprimatur.script.on("BatchSubmitJobs", answer)
    files = [str(CREATIVES / name) for name in ("02-emergency-plumber.json", "09-cafe-rotas.json")]
    ran = await imprimatur("submit", *files)
    assert ran.code == 1
    assert ran.err.splitlines() == [f"error: {files[1]}: items[1].task: too long"]
    assert "j1" in ran.out
    assert files[0] in ran.out
    ran = await imprimatur("submit", *files, "--json")
    assert ran.code == 1
    assert ran.json["results"][0]["job"]["id"] == "j1"
    assert ran.json["results"][1]["error"] == {
        "code": "INVALID_ARGUMENT",
        "reason": "INVALID_FIELD",
        "field": "items[1].task",
        "message": "items[1].task: too long",
    }


async def test_a_submission_can_be_watched_to_its_end(imprimatur: Against) -> None:
    imprimatur.script.on("BatchSubmitJobs", accept_all).on(
        "WatchJob",
        lambda request: seen(
            3, JOB_STATE_SUCCEEDED if request.job_id == "j0" else JOB_STATE_AWAITING_REVIEW, request.job_id
        ),
    )
    files = [str(CREATIVES / name) for name in ("02-emergency-plumber.json", "09-cafe-rotas.json")]
    ran = await imprimatur("submit", *files, "--watch", "--json")
    assert ran.code == 0, ran.err
    assert sorted((line["id"], line["state"]) for line in ran.lines) == [
        ("j0", "JOB_STATE_QUEUED"),
        ("j0", "JOB_STATE_SUCCEEDED"),
        ("j1", "JOB_STATE_AWAITING_REVIEW"),
        ("j1", "JOB_STATE_QUEUED"),
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[1]", "must hold one JSON object"),
        ("{", "is not JSON"),
        ('{"creativeId": "x", "colour": "red"}', 'no field named "colour"'),
        ('{"creativeId": "x", "images": [{"path": "../secret.png"}]}', "images[0].path: must lead into the folder"),
        ('{"creativeId": "x", "images": [{"path": "/etc/hostname"}]}', "images[0].path: must lead into the folder"),
        ('{"creativeId": "x", "images": [{"path": "none.png"}]}', "images[0].path: none.png"),
        ('{"creativeId": "x", "images": [7]}', "images[0]: must be an object"),
        ('{"creativeId": "x", "images": 7}', "not iterable"),
    ],
)
def test_a_file_that_cannot_be_submitted_is_named_with_the_reason(
    here: Here, tmp_path: Path, content: str, told: str
) -> None:
    (tmp_path / "secret.png").write_bytes(b"not to be sent")
    folder = tmp_path / "creatives"
    folder.mkdir()
    file = folder / "one.json"
    file.write_text(content)
    ran = here("submit", str(file))
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith(f"error: {file}: ")
    assert told in ran.err


# --- watch -----------------------------------------------------------------------------------------------


async def test_watching_ends_when_all_are_finished_or_wait_for_a_person(imprimatur: Against) -> None:
    imprimatur.script.on("GetJob", lambda request: GetJobResponse(job=job(job_id=request.job_id)))
    imprimatur.script.on("WatchJob", [seen(2, JOB_STATE_RUNNING), seen(3, JOB_STATE_AWAITING_REVIEW), HANG])
    ran = await imprimatur("watch", "j1")
    assert ran.code == 0, ran.err
    assert [line.split()[1:3] for line in ran.out.splitlines()] == [
        ["v1", "queued"],
        ["v2", "running"],
        ["v3", "awaiting_review"],
    ]


async def test_watching_until_terminal_waits_for_the_person_too(imprimatur: Against) -> None:
    imprimatur.script.on("GetJob", GetJobResponse(job=job(3, JOB_STATE_AWAITING_REVIEW)))
    imprimatur.script.on("WatchJob", [seen(4, JOB_STATE_SUCCEEDED)])
    ran = await imprimatur("watch", "j1", "--until-terminal", "--json")
    assert [line["state"] for line in ran.lines] == ["JOB_STATE_AWAITING_REVIEW", "JOB_STATE_SUCCEEDED"]
    assert imprimatur.script.requests["WatchJob"][0].after_version == 3


async def test_watching_without_ids_takes_all_that_is_unfinished(imprimatur: Against) -> None:
    imprimatur.script.on(
        "WatchJobs",
        [
            WatchJobsResponse(job=job(1, JOB_STATE_RUNNING, "a")),
            WatchJobsResponse(snapshot_complete=True),
            WatchJobsResponse(job=job(1, JOB_STATE_QUEUED, "b")),
            WatchJobsResponse(job=job(2, JOB_STATE_SUCCEEDED, "a")),
            WatchJobsResponse(job=job(2, JOB_STATE_FAILED, "b")),
            HANG,
        ],
        [WatchJobsResponse(snapshot_complete=True), HANG],
    )
    ran = await imprimatur("watch", "--json")
    assert [(line["id"], line["version"]) for line in ran.lines] == [("a", "1"), ("b", "1"), ("a", "2"), ("b", "2")]
    ran = await imprimatur("watch")
    assert (ran.code, ran.out, ran.err) == (0, "", "nothing is unfinished\n")


async def test_watching_a_job_that_does_not_exist_is_one_clear_line(imprimatur: Against) -> None:
    imprimatur.script.on("GetJob", NO_SUCH_JOB)
    ran = await imprimatur("watch", "j9")
    assert (ran.code, ran.out, ran.err) == (1, "", "error: there is no job j9\n")


async def test_an_error_in_the_middle_of_a_watch_is_one_clear_line(imprimatur: Against) -> None:
    imprimatur.script.on("GetJob", lambda request: GetJobResponse(job=job(job_id=request.job_id)))
    imprimatur.script.on("WatchJob", [seen(2, JOB_STATE_RUNNING), NO_SUCH_JOB])
    ran = await imprimatur("watch", "j1", "j2")
    assert (ran.code, ran.err) == (1, "error: there is no job j9\n")


async def test_ctrl_c_leaves_quietly_with_130(imprimatur: Against) -> None:
    imprimatur.script.on("GetJob", GetJobResponse(job=job()))
    imprimatur.script.on("WatchJob", [seen(2, JOB_STATE_RUNNING), HANG])
    process = await start("watch", "j1", cwd=None, **imprimatur.variables)
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        while b"running" not in await process.stdout.readline():
            pass
    process.send_signal(signal.SIGINT)
    ran = await ended(process)
    assert (ran.code, ran.out, ran.err) == (130, "", "")
    await happens(imprimatur.script.left)


async def test_a_terminal_sees_a_live_table(imprimatur: Against) -> None:
    imprimatur.script.on("GetJob", GetJobResponse(job=job()))
    imprimatur.script.on("WatchJob", [seen(2, JOB_STATE_RUNNING), seen(3, JOB_STATE_SUCCEEDED)])
    terminal, end_of_command = pty.openpty()
    variables = environment(TERM="xterm", **imprimatur.variables)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", "watch", "j1", env=variables, stdout=end_of_command
    )
    os.close(end_of_command)
    shown = await asyncio.to_thread(everything_from, terminal)
    assert await process.wait() == 0
    assert "\x1b[" in shown
    assert "1 in all: 1 succeeded" in shown


def everything_from(terminal: int) -> str:
    """What is written to a terminal until the last writer has gone, which Linux tells as an error."""
    shown = b""
    with contextlib.suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as reader:
        while chunk := reader.read(4096):
            shown += chunk
    return shown.decode()


# --- one job and many ------------------------------------------------------------------------------------

REVIEWED = job(
    7,
    JOB_STATE_SUCCEEDED,
    max_attempts=3,
    attempts=1,
    labels={"run": "7"},
    create_time=Timestamp(seconds=1_800_000_000),
    attempt_history=[Attempt(claim_no=1, worker="w1", error=JobError(code="timed_out", message="took too long"))],
    creative_review=CreativeReviewResult(
        decision=DECISION_APPROVED,
        ai_review=AiReview(
            decision=DECISION_APPROVED,
            reason="[bold]nothing[/bold] speaks \x1b[31magainst it",
            policy_triggered=POLICY_TRIGGER_AUTO_APPROVE,
            evidence=Evidence(findings=[Finding(category=CATEGORY_GAMBLING, field="headline", quote="bet")]),
        ),
    ),
)


async def test_a_job_is_shown_in_full_and_nothing_in_it_steers_the_terminal(imprimatur: Against) -> None:
    imprimatur.script.on("GetJob", GetJobResponse(job=REVIEWED))
    ran = await imprimatur("get", "j1")
    assert ran.code == 0, ran.err
    for told in (
        "succeeded",
        "approved",
        "auto_approve",
        "run=7",
        "2027-01-15",
        "timed_out",
        "gambling",
        "“bet”",
        "1 of 3",
    ):
        assert told in ran.out
    assert "[bold]nothing[/bold]" in ran.out
    assert "\x1b" not in ran.out
    assert "\\x1b[31magainst" in ran.out


async def test_json_is_the_contracts_own_mapping(imprimatur: Against) -> None:
    imprimatur.script.on("GetJob", GetJobResponse(job=REVIEWED))
    ran = await imprimatur("get", "j1", "--json")
    assert ran.json["creativeReview"]["aiReview"]["policyTriggered"] == "POLICY_TRIGGER_AUTO_APPROVE"
    assert ran.json["attemptHistory"][0]["claimNo"] == 1


async def test_lists_are_filtered_and_limited(imprimatur: Against) -> None:
    imprimatur.script.on("ListJobs", ListJobsResponse(jobs=[job(job_id="a"), job(job_id="b")], next_page_token="more"))
    filters = ["--state", "failed", "--state", "queued", "--decision", "pending", "--trigger", "engine_error"]
    arguments = ["list", *filters, "--label", "a=b"]
    ran = await imprimatur(*arguments, "--user", "u", "--subject", "s", "--since", "2026-01-01T00:00Z", "--limit", "2")
    assert ran.code == 0, ran.err
    assert [line.split()[0] for line in ran.out.splitlines() if line.split()[:1] in (["a"], ["b"])] == ["a", "b"]
    request = imprimatur.script.requests["ListJobs"][0]
    assert request.page_size == 2
    assert list(request.filter.states) == [JOB_STATE_FAILED, JOB_STATE_QUEUED]
    assert list(request.filter.decisions) == [DECISION_PENDING]
    assert dict(request.filter.labels) == {"a": "b"}
    assert request.filter.created_from.ToJsonString() == "2026-01-01T00:00:00Z"
    assert len(imprimatur.script.requests["ListJobs"]) == 1
    ran = await imprimatur("list", "--json", "--limit", "1")
    assert [found["id"] for found in ran.json["jobs"]] == ["a"]


async def test_events_cancel_and_retry(imprimatur: Against) -> None:
    event = JobEvent(version=1, kind="submitted", state=JOB_STATE_QUEUED, details={"by": "u"})
    imprimatur.script.on("ListJobEvents", ListJobEventsResponse(events=[event]))
    imprimatur.script.on("CancelJob", CancelJobResponse(job=job(2, JOB_STATE_CANCELLED)))
    imprimatur.script.on("RetryJob", RetryJobResponse(job=job(job_id="j2", retry_of="j1")))
    ran = await imprimatur("events", "j1")
    assert "submitted" in ran.out
    assert "by=u" in ran.out
    ran = await imprimatur("cancel", "j1", "--reason", "mistake", "--json")
    assert ran.json["state"] == "JOB_STATE_CANCELLED"
    assert imprimatur.script.requests["CancelJob"][0].reason == "mistake"
    ran = await imprimatur("retry", "j1", "--json")
    assert (ran.json["id"], ran.json["retryOf"]) == ("j2", "j1")


async def test_of_a_cancelled_job_nothing_says_that_a_person_decides(imprimatur: Against) -> None:
    ai = AiReview(decision=DECISION_PENDING, reason="Not examined: image. A person decides.")
    review = CreativeReviewResult(decision=DECISION_PENDING, ai_review=ai)
    for state, shown in ((JOB_STATE_AWAITING_REVIEW, True), (JOB_STATE_CANCELLED, False)):
        waited = job(3, state, creative_review=review)
        imprimatur.script.on("ListJobs", ListJobsResponse(jobs=[waited]))
        imprimatur.script.on("GetJob", GetJobResponse(job=waited))
        listed, whole = await imprimatur("list"), await imprimatur("get", "j1")
        assert ("A person decides." in listed.out, "pending" in listed.out) == (shown, shown)
        assert ("by the AI" in whole.out, "the AI had said" in whole.out) == (shown, not shown)


async def test_all_that_match_a_filter_are_retried_until_nothing_is_left(imprimatur: Against) -> None:
    script = imprimatur.script
    one, two = [RetriedJob(retry_of=f"old-{name}", job_id=f"new-{name}") for name in "ab"]
    counted, first, last = RetryJobsResponse(left=2), RetryJobsResponse(retried=[one], left=1), RetryJobsResponse()
    last.retried.append(two)
    script.on("RetryJobs", counted, counted, first, last, counted, first, last)
    ran = await imprimatur(
        *("retry", "--all", "--state", "failed", "--label", "a=b", "--user", "ada", "--subject", "cr-1"),
        *("--since", "2026-01-01T00:00:00+00:00", "--until", "2026-01-02T00:00:00+00:00", "--dry-run"),
    )
    assert (ran.code, ran.err) == (0, "2 to retry\n")
    [request] = script.requests["RetryJobs"]
    assert request.dry_run
    wanted = request.filter
    assert (list(wanted.states), dict(wanted.labels)) == ([JOB_STATE_FAILED], {"a": "b"})
    assert (wanted.user_id, wanted.subject_id) == ("ada", "cr-1")
    assert (wanted.created_from.seconds, wanted.created_before.seconds) == (1767225600, 1767312000)
    ran = await imprimatur("retry", "--all", "--state", "failed")
    assert (ran.code, ran.err) == (0, "2 retried\n")
    assert "new-a" in ran.out
    assert "old-b" in ran.out
    ran = await imprimatur("retry", "--all", "--state", "failed", "--json")
    assert [one["jobId"] for one in ran.json["retried"]] == ["new-a", "new-b"]


# --- people ----------------------------------------------------------------------------------------------


async def test_what_the_engine_failed_at_is_sent_back_to_it(imprimatur: Against) -> None:
    script = imprimatur.script
    script.on(
        "ReviewJobsAgain",
        ReviewJobsAgainResponse(left=2, held=1),
        ReviewJobsAgainResponse(job_ids=["j1", "j2"], held=1),
    )
    ran = await imprimatur("review", "again", "--all", "--trigger", "engine_error", "--label", "a=b")
    assert ran.code == 0
    assert ran.err == "2 sent back to the engine\n1 left alone, because a person holds them now\n"
    assert "j2" in ran.out
    wanted = script.requests["ReviewJobsAgain"][0].filter
    assert (list(wanted.policy_triggered), dict(wanted.labels)) == ([POLICY_TRIGGER_ENGINE_ERROR], {"a": "b"})
    script.on("ReviewJobsAgain", ReviewJobsAgainResponse(left=1), ReviewJobsAgainResponse(job_ids=["j1"]))
    script.requests.clear()
    ran = await imprimatur("review", "again", "j1", "--json")
    assert (ran.code, ran.json["jobIds"]) == (0, ["j1"])
    assert [one.job_ids for one in script.requests["ReviewJobsAgain"]] == [["j1"], ["j1"]]


async def test_a_job_that_cannot_be_sent_back_is_an_error_and_a_dry_run_sends_nothing(imprimatur: Against) -> None:
    imprimatur.script.on("ReviewJobsAgain", ReviewJobsAgainResponse(left=1))
    ran = await imprimatur("review", "again", "j1", "--dry-run")
    assert (ran.code, ran.err) == (0, "1 to send back\n")
    assert len(imprimatur.script.requests["ReviewJobsAgain"]) == 1
    ran = await imprimatur("review", "again", "j1", "j2", "--dry-run")
    assert ran.code == 1
    assert "error: 1 passed over" in ran.err


async def test_a_person_lists_looks_claims_and_decides(imprimatur: Against, tmp_path: Path) -> None:
    waiting = job(3, JOB_STATE_AWAITING_REVIEW)
    creative = Creative(creative_id="cr-1", headline="Vote Okonjo", declared_categories=[CATEGORY_POLITICAL])
    review = PendingReview(job=waiting, creative=creative, claimed_by="ada")
    claimed = PendingReview(job=waiting, creative=creative)
    claimed.creative.images.append(CreativeImage(name="../../evil.png", data=b"\x89PNG..."))
    script = imprimatur.script
    script.on("GetJob", GetJobResponse(job=waiting))
    script.on("ListPendingReviews", ListPendingReviewsResponse(reviews=[review]))
    script.on("ClaimReview", ClaimReviewResponse(review=claimed))
    script.on("DecideReview", DecideReviewResponse(job=job(4, JOB_STATE_SUCCEEDED)))
    assert "ada" in (await imprimatur("review", "list")).out
    assert "Vote Okonjo" in (await imprimatur("review", "show", "j1")).out
    ran = await imprimatur("review", "claim", "j1", "--lease", "90s", "--save-images", str(tmp_path / "images"))
    assert "political" in ran.out
    assert [file.name for file in (tmp_path / "images").iterdir()] == ["image-0.png"]
    assert script.requests["ClaimReview"][0].lease.seconds == 90
    ran = await imprimatur(
        "review", "decide", "j1", "approve", "--reason", "a candidate may", "--reviewer", "ada", "--json"
    )
    assert ran.json["state"] == "JOB_STATE_SUCCEEDED"
    decided = script.requests["DecideReview"][0]
    assert (decided.decision, decided.reason, decided.reviewer) == (DECISION_APPROVED, "a candidate may", "ada")


# --- the whole -------------------------------------------------------------------------------------------


async def test_status_and_stats(imprimatur: Against) -> None:
    status = GetSystemStatusResponse(
        database=DependencyStatus(up=True), queues=[QueueStatus(priority=PRIORITY_HIGH, due=12)], slots=8, workers=2
    )
    imprimatur.script.on("GetSystemStatus", status)
    imprimatur.script.on(
        "GetStats", GetStatsResponse(types=[TypeStats(type=JOB_TYPE_CREATIVE_REVIEW, created=34, success_rate=0.5)])
    )
    ran = await imprimatur("status")
    for told in ("high", "12", "2 with 8 slots", "down"):
        assert told in ran.out
    ran = await imprimatur("stats", "--since", "2h")
    for told in ("creative_review", "34", "50.0%"):
        assert told in ran.out
    assert (await imprimatur("stats", "--json")).json["types"][0]["created"] == "34"


async def test_webhook_endpoints_are_created_listed_and_deleted(imprimatur: Against) -> None:
    endpoint = WebhookEndpoint(id="e1", url="https://ads.example/hook", event_types=["job.succeeded"])
    script = imprimatur.script
    script.on("CreateWebhookEndpoint", CreateWebhookEndpointResponse(endpoint=endpoint, secret="whsec_abc"))
    script.on("ListWebhookEndpoints", ListWebhookEndpointsResponse(endpoints=[endpoint]))
    script.on("DeleteWebhookEndpoint", DeleteWebhookEndpointResponse())
    ran = await imprimatur("webhooks", "create", "https://ads.example/hook", "--event", "job.succeeded", "--json")
    assert ran.json["secret"] == "whsec_abc"
    assert "not shown again" in ran.err
    assert "https://ads.example/hook" in (await imprimatur("webhooks", "list")).out
    assert (await imprimatur("webhooks", "delete", "e1")).out == "deleted e1\n"


# --- connection and errors -------------------------------------------------------------------------------


async def test_the_server_that_serve_left_in_the_data_folder_is_found(imprimatur: Against, tmp_path: Path) -> None:
    imprimatur.script.on("GetJob", GetJobResponse(job=job()))
    left = {"target": imprimatur.variables["IMPRIMATUR_TARGET"], "api_key": KEY, "webhook_secret": "whsec_x"}
    for folder in (tmp_path / "imprimatur-data", tmp_path / "elsewhere"):
        folder.mkdir()
        (folder / "client.json").write_text(json.dumps(left))
    assert (await run("get", "j1", cwd=tmp_path)).code == 0
    assert (await run("get", "j1", cwd=ROOT, IMPRIMATUR_DATA=str(tmp_path / "elsewhere"))).code == 0
    assert {header["authorization"] for header in imprimatur.script.headers} == {f"Bearer {KEY}"}
    ran = await run("get", "j1", "--target", "127.0.0.1:1", cwd=tmp_path)
    assert (ran.code, ran.err) == (
        1,
        "error: no key for 127.0.0.1:1: give --api-key, or set IMPRIMATUR_API_KEY\n",
    )


async def test_without_a_server_to_speak_to_the_command_says_what_to_do(tmp_path: Path) -> None:
    ran = await run("list", cwd=tmp_path)
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1
    assert "imprimatur serve" in ran.err
    (tmp_path / "imprimatur-data").mkdir()
    (tmp_path / "imprimatur-data" / "client.json").write_text("{")
    ran = await run("list", cwd=tmp_path)
    assert (ran.code, "cannot be read" in ran.err) == (1, True)


async def test_where_no_server_answers_the_command_says_so_soon(tmp_path: Path) -> None:
    ran = await run("list", "--target", "127.0.0.1:1", IMPRIMATUR_API_KEY=KEY)
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith("error: no server answers at 127.0.0.1:1: is it running")
    (tmp_path / "client.json").write_text(json.dumps({"target": "127.0.0.1:1", "api_key": KEY}))
    ran = await run("list", IMPRIMATUR_DATA=str(tmp_path))
    assert ran.err.startswith(f"error: no server answers at 127.0.0.1:1 (from {tmp_path / 'client.json'}): is it")


async def test_a_wrong_key_is_explained(imprimatur: Against) -> None:
    imprimatur.script.on("ListJobs", Fault(grpc.StatusCode.UNAUTHENTICATED, "no such key", "INVALID_API_KEY"))
    ran = await imprimatur("list")
    assert ran.code == 1
    assert ran.err.startswith("error: no such key; give a key that is valid at 127.0.0.1:")
    ran = await run("list", "--target", "127.0.0.1:1", "--api-key", "two words")
    assert (ran.code, ran.err.startswith("error: api_key: must be printable ASCII")) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["get"], "JOB_ID"),
        (["list", "--state", "asleep"], "asleep"),
        (["list", "--since", "yesterday"], "'yesterday' is neither a time"),
        (["list", "--label", "novalue"], "'novalue' is not KEY=VALUE"),
        (["retry"], "either a JOB_ID, or --all with a filter such as --state failed"),
        (["retry", "j1", "--all", "--state", "failed"], "either a JOB_ID, or --all"),
        (["retry", "--all"], "--all needs a filter, such as --state failed"),
        (["retry", "j1", "--user", "ada"], "a JOB_ID needs no filter"),
        (["retry", "j1", "--dry-run"], "--dry-run goes with --all"),
        (["review", "again"], "either a JOB_ID, or --all with a filter such as --trigger engine_error"),
        (["review", "again", "--all"], "--all needs a filter, such as --trigger engine_error"),
        (["review", "decide", "j1", "maybe", "--reason", "x"], "maybe"),
        (["submit", "/no/such/file.json"], "/no/such/file.json"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(here: Here, arguments: list[str], told: str) -> None:
    ran = here(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith("error: ")
    assert told in ran.err


async def test_a_process_that_was_used_wrongly_says_no_more_and_ends_with_2() -> None:
    ran = await run("fly")
    assert (ran.code, ran.out, ran.err.splitlines()) == (2, "", [ran.err.rstrip("\n")])
    assert ran.err.startswith("error: No such command 'fly'")


async def test_help_names_every_command_and_no_key() -> None:
    ran = await run("--help", IMPRIMATUR_API_KEY=KEY)
    assert ran.code == 0
    for command in (
        "submit",
        "watch",
        "get",
        "list",
        "events",
        "cancel",
        "retry",
        "review",
        "stats",
        "status",
        "webhooks",
    ):
        assert command in ran.out
    ran = await run("get", "--help", IMPRIMATUR_API_KEY=KEY)
    assert "IMPRIMATUR_API_KEY" in ran.out
