"""Concurrency keys: of the jobs with one key at most one is unfinished.

A key is kept as a text that a person can read and that means one key only: "key:nightly" was given by the caller,
"creative:cr-1" is what a creative review has without one. What a user-bound API key submits has keys of that user's
own, "creative@ada:cr-1", since it may neither see nor stop what others submitted.
"""

_GIVEN, _CREATIVE = "key", "creative"


def given(name: str, *, bound_to: str = "") -> str:
    """The key that a caller names; `bound_to` is the user of a user-bound API key."""
    return _key(_GIVEN, name, bound_to)


def of_creative(creative_id: str, *, bound_to: str = "") -> str:
    """The key of a creative review whose caller names none."""
    return _key(_CREATIVE, creative_id, bound_to)


def name_given(key: str | None) -> str:
    """The name of a key that a caller gave; empty for another, or none."""
    kind, _, name = (key or "").partition(":")
    return name if kind.partition("@")[0] == _GIVEN else ""


def _key(kind: str, name: str, user_id: str) -> str:
    if not user_id:
        return f"{kind}:{name}"
    user = user_id.replace("%", "%25").replace(":", "%3A")  # so that the first colon ends it
    return f"{kind}@{user}:{name}"
