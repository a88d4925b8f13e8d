"""What the demo submits, and what was expected of it: examples/creatives. Nothing is submitted here."""

import json
from dataclasses import dataclass
from pathlib import Path

from cli.creatives import read_all
from imprimatur.v1.creative_pb2 import Creative

FOLDER = Path(__file__).resolve().parents[1] / "creatives"
_EXPECTED = "expected.json"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One creative, with what its author knows of it."""

    number: str  #: the file's, such as "07"
    creative: Creative
    benign: bool
    must_not_approve: bool  #: an approval by the AI alone would be wrong


def items() -> list[Item]:
    """All example creatives, in the order of their files."""
    expected = json.loads((FOLDER / _EXPECTED).read_text(encoding="utf-8"))
    return [
        Item(
            number=file.path.name.partition("-")[0],
            creative=file.creative,
            benign=expected[file.path.name]["kind"].startswith("benign"),
            must_not_approve=expected[file.path.name]["mustNotApprove"],
        )
        for file in read_all(FOLDER / name for name in sorted(expected))
    ]
