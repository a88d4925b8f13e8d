"""A private Prometheus starts, scrapes and answers, survives what it should, and leaves nothing behind."""

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from deploy.local import programs, stack
from deploy.local.ports import free_port
from deploy.local.process import wait_until
from deploy.local.programs import ProgramMissing
from deploy.local.prometheus import PrivatePrometheus, QueryFailed, Target
from deploy.local.server import NothingStarted, PortTaken, ServerDidNotStart, write_state
from tests.contract.polling import eventually
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
SECONDS = PATIENCE_SECONDS


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivatePrometheus]:
    with PrivatePrometheus.start(tmp_path_factory.mktemp("prometheus"), []) as server:
        yield server


@asynccontextmanager
async def exporter(asked: list[str]) -> AsyncIterator[str]:
    """host:port of something that can be scraped, and notes how it is asked."""

    async def metrics(request: web.Request) -> web.Response:
        asked.append(request.path_qs)
        return web.Response(text='figs{kind="fresh"} 7\n')

    app = web.Application()
    app.add_routes([web.get("/{path:.*}", metrics)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def gone(pids: list[int]) -> bool:
    return wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), SECONDS)


async def test_it_scrapes_what_it_is_told_to_and_answers_queries(tmp_path: Path) -> None:
    asked: list[str] = []
    async with exporter(asked) as address:
        targets = [
            Target(job="orchard", addresses=[address]),
            Target(job="cellar", addresses=[address], path="/more", parameters={"family": ["a", "b"]}),
            Target(job="nobody", addresses=["127.0.0.1:1"]),
        ]
        with PrivatePrometheus.start(tmp_path, targets, interval_seconds=1) as server:
            seen = {("orchard", address): "up", ("cellar", address): "up", ("nobody", "127.0.0.1:1"): "down"}
            await eventually(lambda: server.targets() == seen, "the first scrapes")
            [found] = server.query('figs{job="orchard"}')
            assert (found.value, found.labels["kind"], found.labels["instance"]) == (7, "fresh", address)
            assert set(asked) == {"/metrics", "/more?family=a&family=b"}
            assert server.query("figs", at=1.0) == []
            assert [sample.value for sample in server.query("scalar(vector(3))")] == [3]
            with pytest.raises(QueryFailed, match="parse error"):
                server.query("sum(")


async def test_it_tells_what_fires_and_which_rules_fail(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "groups:\n- name: ours\n  rules:\n"
        "  - {alert: Always, expr: vector(1), labels: {severity: warning}}\n"
        "  - {alert: Never, expr: vector(1) > 1}\n"
        '  - {record: broken, expr: \'label_replace(vector(1), "a b", "x", "", "")\'}\n'
    )
    with PrivatePrometheus.start(tmp_path / "server", [], interval_seconds=1, rules=rules) as server:
        await eventually(server.alerts, "an alert")
        assert server.alerts() == [{"alertname": "Always", "severity": "warning"}]
        await eventually(server.failing_rules, "a failing rule")
        assert [*server.failing_rules()] == ["broken"]


async def test_what_it_has_seen_survives_a_restart_and_a_kill(tmp_path: Path) -> None:
    async with exporter([]) as address:
        targets = [Target(job="orchard", addresses=[address])]
        with PrivatePrometheus.start(tmp_path, targets, interval_seconds=1) as server:
            await eventually(lambda: server.query("figs"), "a scrape")
            [before] = server.query("timestamp(figs)")
            server.restart()
            assert server.query("figs", at=before.value)
            pids = server.pids()
            server.kill()
            assert gone(pids)
            server.restart()
            assert server.query("figs", at=before.value)


def test_two_servers_run_side_by_side_and_leave_nothing(prometheus: PrivatePrometheus, tmp_path: Path) -> None:
    with PrivatePrometheus.start(tmp_path, []) as other:
        assert other.port != prometheus.port
        pids = other.pids()
        assert (tmp_path / "data").exists()
    assert gone(pids)
    assert not (tmp_path / "data").exists()
    assert prometheus.alive()


def test_another_process_attaches_to_it_and_stops_it(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from deploy.local.prometheus import PrivatePrometheus\n"
        "PrivatePrometheus.start(Path(sys.argv[1]), [], die_with_parent=False)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, timeout=SECONDS, check=True)
    server = PrivatePrometheus.attach(tmp_path)
    try:
        assert [sample.value for sample in server.query("vector(1)")] == [1]
        with pytest.raises(ServerDidNotStart, match="already"):
            PrivatePrometheus.start(tmp_path, [])
        pids = server.pids()
        server.stop()
        assert gone(pids)
        assert not PrivatePrometheus.attach(tmp_path).alive()
    finally:
        server.discard()


def test_a_start_that_fails_says_why_and_leaves_nothing(prometheus: PrivatePrometheus, tmp_path: Path) -> None:
    with pytest.raises(PortTaken, match=str(prometheus.port)):
        PrivatePrometheus.start(tmp_path / "port", [], port=prometheus.port)
    rules = tmp_path / "rules.yaml"
    rules.write_text("groups: nonsense\n")
    with pytest.raises(ServerDidNotStart, match="nonsense"):
        PrivatePrometheus.start(tmp_path / "rules", [], rules=rules)
    failed = PrivatePrometheus.attach(tmp_path / "rules")
    assert not failed.alive()
    failed.discard()
    with pytest.raises(NothingStarted):
        PrivatePrometheus.attach(tmp_path / "rules")


# --- make up ---------------------------------------------------------------------------------------------


def test_a_machine_without_prometheus_is_told_so_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ProgramMissing("It is not installed,\nand cannot be.")

    monkeypatch.setattr(programs, "prometheus", missing)
    monkeypatch.setattr(programs, "postgres_exporter", missing)
    unobserved = stack.Stack(
        folder=ROOT,
        environ={"IMPRIMATUR_DATABASE_URL": ""},
        target="",
        api_key="",
        webhook_secret="",
        ports={},
        rabbitmq_metrics="127.0.0.1:1",
    )
    assert stack.observed(unobserved) == ("not there: It is not installed, and cannot be.",) * 2


def test_a_service_has_its_earlier_port_or_else_the_usual_one_or_else_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = {name: free_port() for name in ("grpc", "gateway", "reviewer", "notifier")}
    monkeypatch.setattr(stack, "_USUAL_PORTS", usual)
    with socket.socket() as other:
        other.bind(("127.0.0.1", usual["reviewer"]))
        other.listen()
        chosen = stack._ports(tmp_path, usual_ports=True)
        assert chosen == {**usual, "reviewer": chosen["reviewer"]}
        assert chosen["reviewer"] != usual["reviewer"]
    for name, ports in {"gateway": ("grpc", "gateway"), "reviewer": ("reviewer",), "notifier": ("notifier",)}.items():
        (tmp_path / name).mkdir()
        write_state(tmp_path / name, process=None, settings={"ports": {one: chosen[one] for one in ports}})
    assert stack._ports(tmp_path, usual_ports=True) == chosen
    assert stack._ports(tmp_path, usual_ports=False) == chosen
    with socket.socket() as other:
        other.bind(("127.0.0.1", chosen["reviewer"]))
        other.listen()
        assert stack._ports(tmp_path, usual_ports=True) == usual


def test_a_service_whose_port_was_taken_in_between_ends_in_that_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "SERVICES", {"reviewer": stack.SERVICES["reviewer"]})
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        environ = {
            **os.environ,
            "IMPRIMATUR_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
            "IMPRIMATUR_BROKER_URL": "amqp://127.0.0.1:1/",
            "IMPRIMATUR_HTTP_HOST": "127.0.0.1",
            stack.SERVICES["reviewer"]: str(port),
        }
        with pytest.raises(PortTaken, match="reviewer ended"):
            stack._start_services(tmp_path, environ, {"reviewer": port}, die_with_parent=True)
    assert stack.running(tmp_path) == []


def test_finding_the_programs_fails_only_for_what_nothing_runs_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise ProgramMissing("not installed")

    monkeypatch.setattr(programs, "prometheus", missing)
    monkeypatch.setattr(programs, "postgres_exporter", missing)
    assert programs.main() == 0
    told = capsys.readouterr().err
    assert "without Prometheus" in told
    assert "no metrics of PostgreSQL" in told
    monkeypatch.setattr(programs, "rabbitmq", missing)
    assert programs.main() == 1
