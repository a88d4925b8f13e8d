"""docs/deployment/kubernetes.md says what is there: its table is current, its overlay builds, its names exist."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from deploy.k8s import rendering, secrets
from deploy.k8s.rendering import Manifest, rendered
from deploy.k8s.summary import table
from tests.deploy.manifests import Manifests, only_container

from imprimatur.vault import Vault

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deployment" / "kubernetes.md").read_text(encoding="utf-8")


def referred_to(overlay: str) -> set[tuple[str, str]]:
    """Secret and key of everything that must exist."""
    these = Manifests.of(overlay)
    references = [
        entry["valueFrom"]["secretKeyRef"]
        for workload in these.workloads()
        for entry in only_container(workload).get("env", [])
        if "valueFrom" in entry
    ]
    return {(one["name"], one["key"]) for one in references if not one.get("optional")}


def test_the_table_is_what_the_overlay_has() -> None:
    [shown] = re.findall("<!-- summary -->\n(.*)<!-- /summary -->", PAGE, re.DOTALL)
    assert shown == table(rendered("production")), "run `python -m deploy.k8s.summary`, and put it there"


def test_an_overlay_of_ones_own_builds_as_the_page_has_it(tmp_path: Path) -> None:
    [shown] = re.findall("```yaml\n(.*?)```", PAGE, re.DOTALL)
    overlays = os.path.relpath(rendering.FOLDER / "overlays", tmp_path.resolve())
    assert "../imprimatur/deploy/k8s/overlays" in shown
    (tmp_path / "kustomization.yaml").write_text(shown.replace("../imprimatur/deploy/k8s/overlays", overlays))
    try:
        these = Manifests("mine", [*yaml.safe_load_all(rendering.build(tmp_path))])
    except rendering.KustomizeMissing as reason:
        pytest.skip(f"nothing to build with: {reason}")
    told = these.environment(these.service("reviewer"))
    assert told["IMPRIMATUR_ENGINE"] == "llm"
    assert told["IMPRIMATUR_LEASE_SECONDS"] == "3.0"
    assert {only_container(one)["image"] for one in these.workloads()} == {"registry.example/imprimatur:0.1.0"}
    assert these.find("Certificate", "*")["spec"]["issuerRef"]["name"] == "my-issuer"


def test_the_page_names_every_secret_that_must_exist() -> None:
    for name, key in referred_to("production"):
        assert re.search(rf"\| `{name}` \| `{key}`", PAGE), name
    assert re.search(r"\| `imprimatur-llm` \| `api-key`", PAGE)


def test_the_commands_name_what_exists() -> None:
    known = {(one["kind"].lower(), one["metadata"]["name"]) for one in rendered("production") + rendered("local")}
    named = re.findall(
        r"\b(deployment|job|service)/([a-z-]+)", "".join(re.findall("```sh cluster\n(.*?)```", PAGE, re.DOTALL))
    )
    assert len(named) > 5
    assert {*named} <= known


def test_fresh_secrets_are_those_that_the_local_overlay_refers_to() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.k8s.secrets"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    items: list[Manifest] = json.loads(done.stdout)["items"]
    made = {(one["metadata"]["name"], key) for one in items for key in one["stringData"]}
    assert referred_to("local") <= made
    values = {one["metadata"]["name"]: one["stringData"] for one in items}
    Vault.from_text(values["imprimatur-vault"]["key"])
    assert values["imprimatur-database"]["password"] in values["imprimatur-database"]["url"]
    assert values["imprimatur-broker"]["password"] in values["imprimatur-broker"]["url"]
    assert values["imprimatur-database"] != secrets.fresh()[0]["stringData"]


def test_fresh_secrets_lead_to_the_local_overlays_servers() -> None:
    services = {
        one["metadata"]["name"]: one["spec"]["ports"][0]["port"]
        for one in rendered("local")
        if one["kind"] == "Service"
    }
    urls = [one["stringData"]["url"] for one in secrets.fresh() if "url" in one["stringData"]]
    assert len(urls) == 2
    for url in urls:
        [(host, port)] = re.findall(r"@([a-z-]+):(\d+)/", url)
        assert services[host] == int(port)
