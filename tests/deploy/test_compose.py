"""deploy/compose.yaml: valid by the specification, and in agreement with everything it names. No engine is needed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local import programs
from docs.settings import SERVICES, settings
from imprimatur.vault import Vault

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "compose.yaml"
UP = ROOT / "deploy" / "compose" / "up"
OURS = [*SERVICES]
Service = dict[str, Any]


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    found: dict[str, Service] = yaml.safe_load(FILE.read_text())["services"]
    return found


def prometheus_config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose" / "prometheus.yml").read_text())
    return found


def test_it_keeps_to_the_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_specification_is_strict(tmp_path: Path) -> None:
    broken = tmp_path / "compose.yaml"
    broken.write_text(FILE.read_text().replace("depends_on:", "depend_on:", 1))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(broken)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "depend_on" in done.stdout


def test_the_services_are_told_settings_that_they_read(services: dict[str, Service]) -> None:
    known = {variable: (field, readers) for variable, (field, readers) in settings().items()}
    for name in OURS:
        told = set(services[name]["environment"])
        assert all(name in known[variable][1] for variable in told), name
        required = {variable for variable, (field, readers) in known.items() if field.is_required() and name in readers}
        assert required <= told, name
    assert set(services["migrate"]["environment"]) == {"IMPRIMATUR_DATABASE_URL"}
    assert [services[name]["command"] for name in (*OURS, "migrate")] == [[name] for name in (*OURS, "migrate")]


def test_only_what_seals_and_opens_secrets_has_the_key(services: dict[str, Service]) -> None:
    assert [name for name in services if "IMPRIMATUR_VAULT_KEY" in services[name].get("environment", {})] == [
        "gateway",
        "notifier",
    ]


def test_the_ports_are_those_that_the_services_listen_on(services: dict[str, Service]) -> None:
    default = {variable: field.default for variable, (field, _) in settings().items()}
    assert services["gateway"]["ports"] == [f"127.0.0.1:7443:{default['IMPRIMATUR_GRPC_PORT']}"]
    jobs = {job["job_name"]: job for job in prometheus_config()["scrape_configs"]}
    for name in OURS:
        port = default[f"IMPRIMATUR_{name.upper()}_HTTP_PORT"]
        assert f":{port}/readyz" in services[name]["healthcheck"]["test"][-1]
        [asked] = jobs[f"imprimatur-{name}"]["dns_sd_configs"]
        assert (asked["names"], asked["port"]) == ([name], port)


def test_prometheus_scrapes_containers_that_there_are_under_the_names_of_the_plain_configuration(
    services: dict[str, Service],
) -> None:
    jobs = prometheus_config()["scrape_configs"]
    for job in jobs:
        for group in job.get("static_configs", []):
            assert all(target.partition(":")[0] in services for target in group["targets"])
    plain = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert [job["job_name"] for job in jobs] == [job["job_name"] for job in plain]
    assert [job.get("params") for job in jobs] == [job.get("params") for job in plain]
    promtool, config = programs.prometheus().bin / "promtool", FILE.parent / "compose" / "prometheus.yml"
    command: list[str | Path] = [promtool, "check", "config", config]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_grafana_asks_the_prometheus_that_there_is(services: dict[str, Service]) -> None:
    source = FILE.parent / "grafana" / "provisioning" / "datasources" / "prometheus.yaml"
    [datasource] = yaml.safe_load(source.read_text())["datasources"]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", datasource["url"]).groups()  # type: ignore[union-attr]  # else it fails, as it should
    assert services[host]["ports"] == [f"127.0.0.1:9090:{port}"]
    provider = FILE.parent / "grafana" / "provisioning" / "dashboards" / "imprimatur.yaml"
    [folder] = [one["options"]["path"] for one in yaml.safe_load(provider.read_text())["providers"]]
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in services["grafana"]["volumes"]}
    assert mounted[folder] == "./grafana/dashboards"
    assert services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].startswith(f"{folder}/")


def test_every_file_that_is_mounted_or_built_from_exists(services: dict[str, Service]) -> None:
    volumes = yaml.safe_load(FILE.read_text())["volumes"]
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source, _, rest = volume.partition(":")
            if source.startswith("."):
                assert (FILE.parent / source).exists(), (name, volume)
                assert rest.endswith(":ro"), (name, volume)
            else:
                assert source in volumes, (name, volume)
        if build := service.get("build"):
            assert (FILE.parent / build["context"] / build["dockerfile"]).is_file()


def test_what_is_waited_for_can_be_waited_for(services: dict[str, Service]) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert services[other]["healthcheck"]["test"][0] == "CMD", (name, other)
            else:
                assert how["condition"] == "service_completed_successfully"
                assert services[other]["restart"] == "no"
    for name in OURS:
        assert set(services[name]["depends_on"]) == {"migrate", "postgres", "rabbitmq"}


def test_the_services_may_drain_before_they_are_killed(services: dict[str, Service]) -> None:
    field, _ = settings()["IMPRIMATUR_DRAIN_SECONDS"]
    for name in OURS:
        assert float(services[name]["stop_grace_period"].removesuffix("s")) > field.default


def test_nothing_is_reachable_from_elsewhere_and_no_password_is_written_down(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASS|SECRET|KEY|_URL$", variable):
                assert re.search(r"\$\{\w+:\?run deploy/compose/up\}", value), (name, variable)
        if name in (*OURS, "migrate"):
            assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])


# --- deploy/compose/up -----------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The command beside a compose file of its own, with an engine that only notes what it was asked."""
    folder = tmp_path / "deploy"
    (folder / "compose").mkdir(parents=True)
    (folder / "compose" / "up").write_text(UP.read_text())
    engine = tmp_path / "bin" / "docker"
    engine.parent.mkdir()
    engine.write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/asked"\n')
    engine.chmod(0o755)
    return folder


def up(folder: Path, *words: str) -> dict[str, str]:
    environ = {**os.environ, "PATH": f"{folder.parent / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(["sh", folder / "compose" / "up", *words], env=environ, cwd="/", check=True, capture_output=True)
    return dict(line.split("=", 1) for line in (folder / ".env").read_text().splitlines())


def test_one_command_makes_the_secrets_once_and_starts_everything(copied: Path) -> None:
    made = up(copied)
    wanted = set(re.findall(r"\$\{(\w+):\?run deploy/compose/up\}", FILE.read_text()))
    assert set(made) == wanted == set(re.findall(r"\$\{(\w+)", FILE.read_text()))
    assert (copied / ".env").stat().st_mode & 0o777 == 0o600
    assert all(re.fullmatch(r"[0-9a-f]{24,}", made[name]) for name in wanted if name.endswith("PASSWORD"))
    assert len(set(made.values())) == len(made)
    Vault.from_text(made["IMPRIMATUR_VAULT_KEY"])
    assert up(copied, "--scale", "reviewer=2") == made
    asked = (copied.parent / "asked").read_text().splitlines()
    assert asked == [f"compose --file compose.yaml up --build --detach{more}" for more in ("", " --scale reviewer=2")]


def test_the_secrets_are_kept_out_of_the_repository_and_the_image() -> None:
    ignored = subprocess.run(
        ["git", "check-ignore", "deploy/.env", "deploy/.env.new", "deploy/compose/reviewer.env"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(ignored.stdout.splitlines()) == 3
    assert (ROOT / ".dockerignore").read_text().splitlines()[0] == "*"


def test_the_plugins_are_those_that_the_page_and_prometheus_need() -> None:
    plugins = (FILE.parent / "compose" / "rabbitmq-plugins").read_text()
    assert json.loads(re.sub(r"(\w+)", r'"\1"', plugins.strip().rstrip("."))) == [
        "rabbitmq_management",
        "rabbitmq_prometheus",
    ]
