"""Enum members by name: domain FOO <-> protobuf PREFIX_FOO."""

from enum import Enum
from typing import Any, TypeVar

_Member = TypeVar("_Member", bound=Enum)


def to_wire(wrapper: Any, prefix: str, member: Enum | None) -> Any:
    """The protobuf value of a domain member; the UNSPECIFIED one for None."""
    return wrapper.Value(f"{prefix}_{member.name if member is not None else 'UNSPECIFIED'}")


def from_wire(wrapper: Any, prefix: str, value: int, kind: type[_Member]) -> _Member | None:
    """The domain member of a protobuf value; None for UNSPECIFIED and for values this version does not know."""
    if value not in wrapper.values():
        return None
    return kind.__members__.get(wrapper.Name(value).removeprefix(f"{prefix}_"))
