"""The project's own test sets, in the format of `labelled`: none is ever trained on. docs/evaluation.md says how far
each may be trusted; "sealed" stays so as long as nothing is chosen by it."""

from pathlib import Path


def path(name: str) -> Path:
    """Where the set of that name lies: "test", "fresh" or "sealed"."""
    return Path(__file__).parent / f"{name}.jsonl"
