"""Writes deploy/k8s/rendered/ from the overlays; with --check, only compares. Needs kubectl or kustomize.

The rendered files are for reading, for reviews of changes, and for tests on machines without kustomize; what is
deployed is the overlay. Rules and dashboards are left out: their folders have them, and tests of their own. Where there
is nothing to build with, --check says so and finds no fault.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent
OVERLAYS = ("local", "production")

Manifest = dict[str, Any]

#: What builds, how it is asked for its version, and where the answer has kustomize's. Debian 12's kubectl has none.
_PROGRAMS = (
    (("kustomize", "build"), ("version",), r"v(\d+)\."),
    (("kubectl", "kustomize"), ("version", "--client", "--output=json"), r'"kustomizeVersion": "v(\d+)\.'),
)
_OLDEST = 5


class KustomizeMissing(RuntimeError):
    """Neither kubectl nor kustomize is on PATH, or both are too old."""


def path(overlay: str) -> Path:
    """Where an overlay's rendered form lies."""
    return FOLDER / "rendered" / f"{overlay}.yaml"


def rendered(overlay: str) -> list[Manifest]:
    """The objects of an overlay, from the committed file."""
    return [*yaml.safe_load_all(path(overlay).read_text(encoding="utf-8"))]


def built(overlay: str) -> str:
    """What kustomize makes of an overlay now, all of it. Raises as `build`."""
    return build(FOLDER / "overlays" / overlay)


def build(folder: Path) -> str:
    """What kustomize makes of a folder.

    Raises:
        KustomizeMissing: there is nothing to build with.
        subprocess.CalledProcessError: it does not build; `stderr` says why.
    """
    command = [*_kustomize(), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def shortened(text: str) -> str:
    """The built text as it is kept in `rendered/`."""
    kept = [part for part in text.split("\n---\n") if not _is_elsewhere(yaml.safe_load(part))]
    return "# Written by `python -m deploy.k8s.rendering`; deploy the overlay.\n" + "\n---\n".join(kept)


def main() -> int:
    """Write both files, or say which is not current."""
    checks = "--check" in sys.argv
    try:
        wanted = {path(overlay): shortened(built(overlay)) for overlay in OVERLAYS}
    except KustomizeMissing as reason:
        sys.stderr.write(f"deploy/k8s/rendered/ is not {'compared' if checks else 'written'}: {reason}\n")
        return 0 if checks else 1
    if not checks:
        for file, text in wanted.items():
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return 0
    # By what they say: versions of kustomize differ in how they write it.
    stale = [file.name for file, text in wanted.items() if not file.exists() or _said(file.read_text()) != _said(text)]
    if stale:
        sys.stderr.write(f"not current: {', '.join(stale)}; run `python -m deploy.k8s.rendering`\n")
    return 1 if stale else 0


def _said(text: str) -> list[Manifest]:
    return [*yaml.safe_load_all(text)]


def _is_elsewhere(manifest: Manifest) -> bool:
    labels = manifest["metadata"].get("labels", {})
    return manifest["kind"] == "PrometheusRule" or "grafana_dashboard" in labels


def _kustomize() -> list[str]:
    for words, asked, version in _PROGRAMS:
        if program := shutil.which(words[0]):
            said = subprocess.run([program, *asked], capture_output=True, text=True, check=False).stdout
            found = re.search(version, said)
            if found and int(found[1]) >= _OLDEST:
                return [program, *words[1:]]
    raise KustomizeMissing("kubectl (1.27 or newer) or kustomize (5 or newer) must be on PATH")


if __name__ == "__main__":
    raise SystemExit(main())
