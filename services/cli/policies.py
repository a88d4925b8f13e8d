"""`imprimatur policies`: what the AI may decide, which version of that is live, and what another would do.

A policy in a file is the document that `policies show --document` writes: JSON with the settings by their names; what
is left out is as in a new tenant's policy.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import policy_tables as tables
from cli.arguments import SinceOption, UntilOption
from cli.commands import CommandFailed, Session, client_command
from cli.output import note
from imprimatur.errors import InvalidRequest
from imprimatur.policy import Policy
from imprimatur.v1 import policy_service_pb2 as pb
from imprimatur.v1.creative_pb2 import DECISION_PENDING
from imprimatur.wire.policies import policy_from_wire, policy_to_wire

app = typer.Typer(help="What the AI may decide: versions, and what a change would do.")

_LIVE = "live"


def _number(text: str | int) -> int:
    """A version's number; 0 for the live one; raises BadParameter. A default comes as what it is."""
    if isinstance(text, int):
        return text
    if text == _LIVE:
        return 0
    if not (text.isascii() and text.isdigit() and 0 < int(text[:10]) < 2**31 and len(text) < 11):
        raise typer.BadParameter(f"'{text}' is neither the number of a version nor '{_LIVE}'")
    return int(text)


VersionArgument = Annotated[int, typer.Argument(metavar="VERSION", parser=_number, help="A number, or 'live'.")]
NumberArgument = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="A version's number.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE.json", help="The policy as a document.")]
NoteOption = Annotated[str, typer.Option("--note", help="Why. Kept with the version.")]
AuthorOption = Annotated[str, typer.Option("--author", help="Who; default: the key's name.")]


@client_command(app, "list")
async def list_versions(
    session: Session,
    *,
    activations: Annotated[
        bool, typer.Option("--activations", help="Which version was live from when on, in place of the versions.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0: all.")] = 20,
) -> None:
    """List the versions of the policy, newest first, or the record of which was live when."""
    policies = session.client.policies
    if activations:
        record: list[pb.PolicyActivation] = []
        async for one in policies.activations():
            record.append(one)
            if len(record) == limit:
                break
        session.output.show(pb.ListPolicyActivationsResponse(activations=record), lambda: tables.activations(record))
        return
    found: list[pb.PolicyVersion] = []
    async for version in policies.versions():
        found.append(version)
        if len(found) == limit:
            break
    session.output.show(pb.ListPolicyVersionsResponse(versions=found), lambda: tables.versions(found))


@client_command(app, "show")
async def show(
    session: Session,
    *,
    version: VersionArgument = 0,
    document: Annotated[
        bool, typer.Option("--document", help="As JSON that `policies create` takes, to be changed.")
    ] = False,
) -> None:
    """Show a version of the policy; without one, the live one."""
    found = await session.client.policies.get(version)
    if document:
        session.output.write(json.dumps(policy_from_wire(found.policy).document(), indent=2, ensure_ascii=False))
    else:
        session.output.show(found, lambda: tables.version_in_full(found))


@client_command(app, "create")
async def create(
    session: Session,
    *,
    file: FileArgument,
    activate: Annotated[bool, typer.Option("--activate", help="Make it the live one.")] = False,
    based_on: Annotated[
        int, typer.Option("--based-on", min=0, help="The version it was made from: refused if another is live by now.")
    ] = 0,
    remark: NoteOption = "",
    author: AuthorOption = "",
) -> None:
    """Add a version of the policy. It decides nothing before it is activated."""
    policies = session.client.policies
    made = await policies.create(_policy(file), note=remark, author=author, based_on=based_on, activate=activate)
    session.output.show(made, lambda: tables.versions([made]))
    if not activate:
        note(f"not live yet: try it with 'imprimatur policies preview {made.version}', then 'policies activate'")


@client_command(app, "activate")
async def activate(
    session: Session,
    *,
    version: NumberArgument,
    live: Annotated[
        int, typer.Option("--live", min=0, help="The version that is live: refused if another is by now.")
    ] = 0,
    remark: NoteOption = "",
    author: AuthorOption = "",
) -> None:
    """Make a version the live one, at once for queued and running reviews too; an older one is the way back."""
    activated = await session.client.policies.activate(version, live=live, note=remark, author=author)
    session.output.show(activated, lambda: tables.versions([activated]))
    note("what waits for a person waits on; 'imprimatur policies redecide' decides it by the live policy")


@client_command(app, "diff")
async def diff(session: Session, *, before: VersionArgument, after: VersionArgument = 0) -> None:
    """Show in which settings two versions differ; without a second one, from the live one."""
    answer = await session.client.policies.diff(before, after)
    session.output.show(answer, lambda: tables.changes(answer))
    if not answer.changes:
        note(f"versions {answer.from_version} and {answer.to_version} say the same")


@client_command(app, "preview")
async def preview(
    session: Session,
    *,
    tried: Annotated[str, typer.Argument(metavar="VERSION|FILE.json", help="A number, 'live', or a document.")],
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="The newest so many.")] = 1000,
    since: SinceOption = None,
    until: UntilOption = None,
) -> None:
    """Show what a policy would have decided about the newest reviews, and which it would have decided otherwise.

    It is decided by what the engine found then. Nothing is changed.
    """
    policy = _number(tried) if tried == _LIVE or tried.isdigit() else _policy(Path(tried))
    answer = await session.client.policies.preview(policy, limit=limit, since=since, until=until)
    session.output.show(answer, lambda: tables.preview(answer))
    note(f"{answer.looked_at} reviews looked at, {len(answer.differing)} decided otherwise")
    if answer.without_criteria:
        note(f"in {answer.without_criteria} a criterion was not examined; a new review would, with a language model")


@client_command(app, "redecide")
async def redecide(
    session: Session,
    *,
    live: Annotated[
        int, typer.Option("--live", min=0, help="The version that is live: refused if another is by now.")
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be decided.")] = False,
) -> None:
    """Decide by the live policy what waits for a person, from what the engine found before. It is not asked again.

    What a person holds, and what no engine has seen, is left alone.
    """
    answer = await session.client.policies.redecide(dry_run=dry_run, live=live)
    session.output.show(answer, lambda: tables.redecided(answer))
    waiting = sum(one.count for one in answer.counts if one.decision == DECISION_PENDING)
    decided = "would be decided" if dry_run else "decided"
    note(f"{len(answer.redecided)} {decided} by version {answer.policy_version}; {waiting} wait on")
    if answer.held:
        note(f"{answer.held} left alone, because a person holds them now")
    if answer.without_evidence:
        note(f"{answer.without_evidence} left alone, because no engine has seen them; see 'imprimatur review again'")
    if answer.by_another_model:
        note(f"{answer.by_another_model} left alone, because another model has seen them than the policy names")


def _policy(file: Path) -> pb.Policy:
    """The policy in a file; raises CommandFailed."""
    try:
        document: Any = json.loads(file.read_bytes())
    except OSError as error:
        raise CommandFailed(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CommandFailed(f"{file}: is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise CommandFailed(f"{file}: must hold one JSON object, as 'imprimatur policies show --document' writes it")
    try:
        return policy_to_wire(Policy.from_document(document))
    except InvalidRequest as flaw:
        raise CommandFailed(f"{file}: {flaw.message}") from None
