"""The prompts, versioned by file name. A change of meaning is a new file; the text is never built up from creatives."""

from importlib import resources

#: The prompt in use.
CURRENT = "creative-review-v1"
#: What follows it where a tenant has criteria.
CRITERIA = "criteria-v1"


def read(name: str) -> str:
    """The text of one prompt."""
    return resources.files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8").strip()
