"""`imprimatur serve` as a real process: everything in one, on SQLite and the in-memory broker."""

import asyncio
import subprocess
from pathlib import Path

from imprimatur.client import is_settled
from imprimatur.v1.creative_pb2 import DECISION_APPROVED
from imprimatur.v1.job_pb2 import ATTEMPT_OUTCOME_LOST, JOB_STATE_AWAITING_REVIEW, JOB_STATE_SUCCEEDED
from imprimatur.vault import Vault
from tests.contract.polling import eventually
from tests.e2e import jobs
from tests.e2e.conftest import Receive, Serve
from tests.e2e.processes import START_SECONDS, Embedded, family, serve_command

CREATIVES = Path(__file__).parents[2] / "examples" / "creatives"
CASINO = CREATIVES / "27-accumulator-offer.json"
_MOST_MEGABYTES = 500.0


async def test_a_creative_is_submitted_watched_and_decided_by_commands_and_told_by_webhooks(
    embedded: Embedded, receive: Receive
) -> None:
    server = embedded
    receiver = receive(server.access["webhook_secret"])

    [result] = server.command("submit", str(CASINO), "--callback-url", receiver.url)["results"]
    job_id = result["job"]["id"]
    shown = server.command("watch", job_id)
    shown = shown if isinstance(shown, list) else [shown]
    assert shown[-1]["state"] == "JOB_STATE_AWAITING_REVIEW"

    assert job_id in [waiting["job"]["id"] for waiting in server.command("review", "list")["reviews"]]
    token = server.command("review", "claim", job_id, "--reviewer", "ann")["claimToken"]
    decided = server.command(
        *("review", "decide", job_id, "reject", "--reason", "no licence shown", "--reviewer", "ann", "--token", token)
    )
    assert decided["state"] == "JOB_STATE_SUCCEEDED"
    assert server.command("get", job_id)["creativeReview"]["humanReview"]["reviewer"] == "ann"

    both = {(job_id, "job.awaiting_review"): 1, (job_id, "job.succeeded"): 1}
    await eventually(lambda: receiver.told() == both, "both webhooks, verified")
    [last] = [one["body"]["data"] for one in receiver.messages() if one["body"]["type"] == "job.succeeded"]
    assert last["status"] == "rejected"
    assert last["creative_data"]["human_review"]["reason"] == "no licence shown"


async def test_a_client_submits_watches_and_decides_and_a_batch_keeps_below_500_megabytes(
    embedded: Embedded, receive: Receive
) -> None:
    receiver = receive(embedded.access["webhook_secret"])
    most = 0.0
    async with embedded.client() as client, asyncio.TaskGroup() as group:
        ids = await jobs.submit_all(client, jobs.requests(jobs.examples(), receiver.url))
        watching = group.create_task(jobs.settled(client, ids))
        while not watching.done():
            most = max(most, embedded.pss_megabytes())
            await asyncio.sleep(0.2)
        ended = watching.result()
        waiting, *_ = [job for job in ended.values() if job.state == JOB_STATE_AWAITING_REVIEW]
        decided = await client.decide(waiting.id, DECISION_APPROVED, "seen, and fine", reviewer="ann")
    most = max(most, embedded.pss_megabytes())

    assert decided.state == JOB_STATE_SUCCEEDED
    told = jobs.outcomes(ended.values()) | jobs.outcomes([decided])
    await eventually(lambda: set(receiver.told()) == told, "a webhook of each outcome")
    assert set(receiver.told().values()) == {1}
    assert most < _MOST_MEGABYTES


async def test_a_stopping_server_finishes_or_keeps_what_it_has_and_the_next_one_goes_on(
    serve: Serve, receive: Receive
) -> None:
    server = serve()
    receiver = receive(server.access["webhook_secret"])
    async with server.client() as client:
        ids = await jobs.submit_all(client, jobs.requests(jobs.plain_creatives(60), receiver.url))
        await client.wait(ids[0], START_SECONDS, until_terminal=False)
    members = family(server.pid)

    assert server.terminate() == 0
    assert not [pid for pid in members if family(pid)]

    successor = serve()
    async with successor.client() as client:
        ended = await jobs.settled(client, ids)
        attempts = [attempt for job_id in ids for attempt in (await client.get(job_id)).attempt_history]
    assert ATTEMPT_OUTCOME_LOST not in {attempt.outcome for attempt in attempts}
    assert all(map(is_settled, ended.values()))
    await eventually(lambda: set(receiver.told()) == jobs.outcomes(ended.values()), "a webhook of each outcome")
    assert set(receiver.told().values()) == {1}


async def test_a_server_killed_in_mid_work_loses_no_job_and_no_webhook(serve: Serve, receive: Receive) -> None:
    server = serve()
    receiver = receive(server.access["webhook_secret"])
    async with server.client() as client:
        ids = await jobs.submit_all(client, jobs.requests(jobs.plain_creatives(60), receiver.url))
        await client.wait(ids[3], START_SECONDS, until_terminal=False)
    members = family(server.pid)
    server.kill()
    await eventually(lambda: not [pid for pid in members if family(pid)], "the engine's processes are gone too")

    successor = serve()
    async with successor.client() as client:
        ended = await jobs.settled(client, ids)
    assert all(map(is_settled, ended.values()))
    wanted = jobs.outcomes(ended.values())
    await eventually(lambda: set(receiver.told()) == wanted, "a webhook of each outcome")
    assert set(receiver.told().values()) == {1}


def test_a_second_server_on_the_same_folder_is_refused(embedded: Embedded) -> None:
    assert f"another `imprimatur serve` is running on {embedded.data}" in _refused(embedded.data)
    assert embedded.command("status")["database"]["up"]


def test_a_taken_port_is_refused_in_one_line(embedded: Embedded, tmp_path: Path) -> None:
    port = embedded.access["target"].rpartition(":")[2]
    assert port in _refused(tmp_path / "other", "--port", port)


def test_a_taken_metrics_port_is_refused_in_one_line(embedded: Embedded, tmp_path: Path) -> None:
    port = embedded.access["metrics"].rpartition("/")[0].rpartition(":")[2]
    assert f"cannot serve /metrics on 127.0.0.1:{port}: " in _refused(tmp_path / "other", "--metrics-port", port)


def test_a_folder_without_a_safe_vault_key_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    key = data / "vault.key"
    Vault.from_file(key, create=True)
    (data / "imprimatur.db").touch()
    key.chmod(0o644)
    assert "vault.key" in _refused(data)
    key.unlink()
    assert "vault.key" in _refused(data)
    assert not key.exists()


def _refused(data: Path, *words: str) -> str:
    """The one line that a server leaves that does not start."""
    done = subprocess.run(
        serve_command(data, *words), capture_output=True, text=True, timeout=START_SECONDS, check=False
    )
    assert done.returncode == 1, done.stdout
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line
