"""A process that still starts tells what it waits for; told to stop, it gives up in order."""

import json
import os
from pathlib import Path

import pytest

from deploy.local.ports import free_port
from deploy.local.stack import SERVICES
from imprimatur.vault import new_key
from tests.e2e.conftest import Serve
from tests.e2e.processes import IMPRIMATUR, Child, get, serve_command


@pytest.mark.parametrize("name", ["gateway", "reviewer", "notifier"])
def test_a_service_that_waits_for_its_database(name: str, children: list[Child], tmp_path: Path) -> None:
    nobody, http_port = f"127.0.0.1:{free_port()}", free_port()
    settings = {
        "IMPRIMATUR_HTTP_HOST": "127.0.0.1",
        SERVICES[name]: str(http_port),
        "IMPRIMATUR_DATABASE_URL": f"postgresql://imprimatur@{nobody}/imprimatur",
        "IMPRIMATUR_BROKER_URL": f"amqp://{nobody}/",
        "IMPRIMATUR_VAULT_KEY": new_key(),
    }
    service = Child([*IMPRIMATUR, name], tmp_path / "log", {**os.environ, **settings})
    children.append(service)
    service.until(lambda: "waiting for the database" in service.output, name)
    assert get(http_port, "/livez")[0] == 200
    status, body = get(http_port, "/readyz")
    assert (status, list(json.loads(body)["failing"])) == (503, ["starting", "database"])
    status, body = get(http_port, "/metrics")
    assert (status, "imprimatur_broker_connected 0.0" in body) == (200, True)
    assert service.terminate() == 0
    assert "Traceback" not in service.output


def test_a_server_in_the_middle_of_its_start(children: list[Child], tmp_path: Path, serve: Serve) -> None:
    data = tmp_path / "data"
    server = Child(serve_command(data), tmp_path / "log")
    children.append(server)
    server.until((data / "imprimatur.db").exists, "imprimatur serve")
    assert server.terminate() == 0
    assert "Traceback" not in server.output
    assert serve().alive()
