"""Enum members by name: domain FOO <-> protobuf PREFIX_FOO."""

from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar

_Member = TypeVar("_Member", bound=Enum)


def to_wire(wrapper: Any, prefix: str, member: Enum | None) -> Any:
    """The protobuf value of a domain member; the UNSPECIFIED one for None."""
    return _values(wrapper, prefix)[member.name if member is not None else "UNSPECIFIED"]


def from_wire(wrapper: Any, prefix: str, value: int, kind: type[_Member]) -> _Member | None:
    """The domain member of a protobuf value; None for UNSPECIFIED and for values this version does not know."""
    return kind.__members__.get(_names(wrapper, prefix).get(value, ""))


@cache
def _values(wrapper: Any, prefix: str) -> Mapping[str, int]:
    return {name.removeprefix(f"{prefix}_"): value for name, value in wrapper.items()}


@cache
def _names(wrapper: Any, prefix: str) -> Mapping[int, str]:
    return {value: name for name, value in _values(wrapper, prefix).items()}
