"""docs/deployment/kubernetes.md says what is there: its table is current, its overlay builds, its names exist."""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.k8s import rendering, secrets
from deploy.k8s.rendering import Manifest, rendered
from deploy.k8s.summary import page
from imprimatur.vault import Vault
from tests.deploy.manifests import Manifests, only_container
from tests.deploy.operations import the_database_has_connections_for_all

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deployment" / "kubernetes.md").read_text(encoding="utf-8")
#: As kubectl calls them.
AUTOSCALERS = {"hpa": "HorizontalPodAutoscaler", "scaledobject": "ScaledObject"}


def cluster_commands() -> list[list[str]]:
    """The words of each command for a cluster, of all pages."""
    texts = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md")]
    fences = [fence for text in texts for fence in re.findall("```sh cluster\n(.*?)```", text, re.DOTALL)]
    return [shlex.split(line, comments=True) for fence in fences for line in fence.splitlines()]


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
    assert page(PAGE, rendered("production")) == PAGE, "run `make docs`"
    fewer = [one for one in rendered("production") if one["kind"] != "Job"]
    assert page(PAGE, fewer) != PAGE


@pytest.fixture
def of_ones_own(tmp_path: Path) -> Manifests:
    """What the page's own overlay builds."""
    [shown] = re.findall("```yaml\n(.*?)```", PAGE, re.DOTALL)
    overlays = os.path.relpath(rendering.FOLDER / "overlays", tmp_path.resolve())
    assert "../imprimatur/deploy/k8s/overlays" in shown
    (tmp_path / "kustomization.yaml").write_text(shown.replace("../imprimatur/deploy/k8s/overlays", overlays))
    try:
        return Manifests("mine", [*yaml.safe_load_all(rendering.build(tmp_path))])
    except rendering.KustomizeMissing as reason:
        pytest.skip(f"nothing to build with: {reason}")


def test_an_overlay_of_ones_own_builds_as_the_page_has_it(of_ones_own: Manifests) -> None:
    these = of_ones_own
    told = these.environment(these.service("reviewer"))
    assert told["IMPRIMATUR_ENGINE"] == "llm"
    assert told["IMPRIMATUR_LEASE_SECONDS"] == "3.0"
    assert {only_container(one)["image"] for one in these.workloads()} == {"registry.example/imprimatur:0.1.0"}
    assert these.find("Certificate", "*")["spec"]["issuerRef"]["name"] == "my-issuer"
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in these.find("NetworkPolicy", "allow-dns")["spec"]["egress"][0][
        "to"
    ]


def test_alerts_lead_to_where_ones_own_overlay_says_that_runbooks_are(of_ones_own: Manifests) -> None:
    groups = of_ones_own.find("PrometheusRule", "imprimatur")["spec"]["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert len(alerts) > 20
    for alert in alerts:
        [page] = (ROOT / "docs" / "runbooks").glob(f"{alert['alert']}.md")
        assert alert["annotations"]["runbook_url"] == f"https://grafana.example/public/runbooks/{page.name}"
    assert not [one for one in of_ones_own.of_kind("ConfigMap") if one["metadata"]["name"] == "runbooks"]


def test_dashboards_look_for_runbooks_where_the_page_has_them_mounted(of_ones_own: Manifests) -> None:
    dashboards = [
        one for one in of_ones_own.of_kind("ConfigMap") if "grafana_dashboard" in one["metadata"].get("labels", {})
    ]
    assert dashboards
    for text in (text for one in dashboards for text in one["data"].values()):
        asked = {one["name"]: one.get("query") for one in json.loads(text)["templating"]["list"]}
        assert f"`{asked['runbooks']}`" in PAGE
        assert f"`/usr/share/grafana{asked['runbooks']}`" in PAGE


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


def test_no_page_sets_a_number_of_pods_that_an_autoscaler_owns() -> None:
    these = Manifests.of("production")
    owned = {one["spec"]["scaleTargetRef"]["name"] for kind in AUTOSCALERS.values() for one in these.of_kind(kind)}
    scaled = {target.rpartition("/")[2] for words in cluster_commands() if "scale" in words for target in words}
    assert "imprimatur-notifier" in scaled, "no command that scales was found"
    assert not scaled & owned


def test_what_pages_patch_of_autoscalers_exists_and_there_are_connections_for_it() -> None:
    patches = [words for words in cluster_commands() if "patch" in words]
    assert {words[words.index("patch") + 1] for words in patches} == {*AUTOSCALERS}
    for words in patches:
        kind, name = words[words.index("patch") + 1 :][:2]
        [text] = [word.removeprefix("--patch=") for word in words if word.startswith("--patch=")]
        these = copy.deepcopy(Manifests.of("production"))
        spec, new = these.find(AUTOSCALERS[kind], name)["spec"], json.loads(text)["spec"]
        assert {*new} <= {*spec}, words
        assert all(spec[field] < number for field, number in new.items()), words
        spec |= new
        assert [*the_database_has_connections_for_all(these)] == [], words


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
