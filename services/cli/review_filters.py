"""Which reviews: the options that commands about the human queue share, and the filter that they make."""

import inspect
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import wraps
from typing import Annotated, Any

import typer

from cli.arguments import LabelOption, PriorityWord, labels_of, length
from cli.commands import Session
from cli.filters import SubjectOption, TriggerOption, UserOption
from imprimatur.client.times import duration
from imprimatur.evidence import Category as CategoryWord
from imprimatur.policy import Trigger
from imprimatur.v1.creative_pb2 import Category, PolicyTrigger
from imprimatur.v1.review_service_pb2 import ReviewFilter


def review_filter(
    *,
    priority: Annotated[list[PriorityWord] | None, typer.Option("--priority", help="May be given often.")] = None,
    category: Annotated[
        list[CategoryWord] | None, typer.Option("--category", help="Declared, or found by the AI; may be given often.")
    ] = None,
    trigger: TriggerOption = None,
    label: LabelOption = None,
    user: UserOption = "",
    subject: SubjectOption = "",
    held_by: Annotated[str, typer.Option("--held-by", metavar="PERSON", help="What this person holds.")] = "",
    mine: Annotated[bool, typer.Option("--mine", help="What you hold.")] = False,
    unclaimed: Annotated[bool, typer.Option("--unclaimed", help="Leave out what other people hold.")] = False,
    older_than: Annotated[
        timedelta | None,
        typer.Option("--older-than", parser=length, metavar="LENGTH", help="Waits for longer than this, such as 2h."),
    ] = None,
    overdue: Annotated[bool, typer.Option("--overdue", help="Past its due time.")] = False,
    images: Annotated[bool | None, typer.Option("--images/--no-images", help="With images, or without any.")] = None,
    appeals: Annotated[bool | None, typer.Option("--appeals/--no-appeals", help="Appeals, or what is none.")] = None,
) -> ReviewFilter:
    """The options as the contract's filter."""
    return ReviewFilter(
        priorities=[word.value_in_contract for word in priority or ()],
        categories=[Category.Value(f"CATEGORY_{word.name}") for word in category or ()],
        policy_triggered=[PolicyTrigger.Value(f"POLICY_TRIGGER_{word.name}") for word in trigger or ()],
        labels=labels_of(label or ()),
        user_id=user,
        subject_id=subject,
        claimed_by=held_by,
        claimed_by_me=mine,
        unclaimed_only=unclaimed,
        waiting_longer_than=duration(older_than),
        overdue_only=overdue,
        has_images=images,
        is_appeal=appeals,
    )


_OPTIONS = tuple(inspect.signature(review_filter).parameters.values())
#: What only looking can ask for: what somebody holds cannot be taken.
_LOOKING = frozenset({"held_by", "mine", "unclaimed"})


def filtered(function: Callable[..., Awaitable[None]], *, to_claim: bool = False) -> Callable[..., Awaitable[None]]:
    """The function of a command with the filter's options in place of its parameter `wanted`."""
    options = [option for option in _OPTIONS if not (to_claim and option.name in _LOOKING)]
    own = inspect.signature(function)

    @wraps(function)
    async def command(session: Session, **values: Any) -> None:
        wanted = review_filter(**{option.name: values.pop(option.name) for option in options})
        await function(session, wanted=wanted, **values)

    kept = [parameter for parameter in own.parameters.values() if parameter.name != "wanted"]
    command.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]  # read by Typer
    return command


def taking(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """The same for a command that takes what it finds."""
    return filtered(function, to_claim=True)


#: Words of a filter that is typed at the desk, and what they stand for.
_SWITCHES: dict[str, dict[str, bool]] = {
    "overdue": {"overdue": True},
    "images": {"images": True},
    "no-images": {"images": False},
    "appeals": {"appeals": True},
    "no-appeals": {"appeals": False},
}
_WORDS: dict[str, Any] = {"priority": PriorityWord, "category": CategoryWord, "older": length}


def typed_filter(line: str) -> ReviewFilter:
    """A filter from one line, such as "category=gambling priority=high overdue older=2h label:team=a".

    Raises:
        ValueError: with a word that is none.
    """
    values: dict[str, Any] = {}
    for word in line.split():
        name, equals, value = word.partition("=")
        if word in _SWITCHES:
            values |= _SWITCHES[word]
        elif name.startswith("label:") and equals:
            values.setdefault("label", []).append(f"{name.removeprefix('label:')}={value}")
        elif equals and value and name in ("priority", "category", "trigger"):
            values.setdefault(name, []).append(_member(name, value))
        elif equals and name in ("user", "subject"):
            values[name] = value
        elif equals and name == "older":
            values["older_than"] = _length(value)
        else:
            known = "priority= category= trigger= user= subject= label:KEY= older= " + " ".join(_SWITCHES)
            raise ValueError(f"'{word}' is none of {known}")
    return review_filter(**values)


def _member(name: str, value: str) -> Any:
    kind = {"priority": PriorityWord, "category": CategoryWord, "trigger": Trigger}[name]
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name}={value}: allowed are {', '.join(kind)}") from None


def _length(value: str) -> timedelta:
    try:
        return length(value)
    except typer.BadParameter as error:
        raise ValueError(error.message) from None
