"""A lint of the public contract, over what protoc makes of it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from google.rpc import status_pb2

ROOT = Path(__file__).parents[2] / "protos"
GOOGLE = Path(str(status_pb2.__file__)).parents[2]
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))

# Field numbers of FileDescriptorProto and its parts, of which paths in the source information consist.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_FIELDS, _NESTED, _NESTED_ENUMS, _ONEOFS = 2, 3, 4, 8
_VALUES, _METHODS = 2, 2

Path_ = tuple[int, ...]


@cache
def files() -> dict[str, FileDescriptorProto]:
    """Every file of the contract, with its comments."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "set.bin"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", f"-I{GOOGLE}"]
        subprocess.run([*command, "--include_source_info", f"--descriptor_set_out={out}", *FILES], check=True)
        found = FileDescriptorSet.FromString(out.read_bytes())
    return {file.name: file for file in found.file}


def messages(file: FileDescriptorProto) -> Iterator[tuple[Path_, DescriptorProto]]:
    def below(path: Path_, message: DescriptorProto) -> Iterator[tuple[Path_, DescriptorProto]]:
        if not message.options.map_entry:
            yield path, message
            for number, nested in enumerate(message.nested_type):
                yield from below((*path, _NESTED, number), nested)

    for number, message in enumerate(file.message_type):
        yield from below((_MESSAGES, number), message)


def enums(file: FileDescriptorProto) -> Iterator[tuple[Path_, EnumDescriptorProto]]:
    for number, enum in enumerate(file.enum_type):
        yield (_ENUMS, number), enum
    for path, message in messages(file):
        for number, enum in enumerate(message.enum_type):
            yield (*path, _NESTED_ENUMS, number), enum


def services(file: FileDescriptorProto) -> Iterator[tuple[Path_, ServiceDescriptorProto]]:
    for number, service in enumerate(file.service):
        yield (_SERVICES, number), service


def everything(file: FileDescriptorProto) -> Iterator[tuple[Path_, str]]:
    """(path, full name) of all that wants a comment."""
    for path, message in messages(file):
        yield path, message.name
        for number, field in enumerate(message.field):
            yield (*path, _FIELDS, number), f"{message.name}.{field.name}"
        of_optional_fields = {field.oneof_index for field in message.field if field.proto3_optional}
        for number, oneof in enumerate(message.oneof_decl):
            if number in of_optional_fields:  # which protoc made up
                continue
            yield (*path, _ONEOFS, number), f"{message.name}.{oneof.name}"
    for path, enum in enums(file):
        yield path, enum.name
        for number, value in enumerate(enum.value):
            yield (*path, _VALUES, number), value.name
    for path, service in services(file):
        yield path, service.name
        for number, method in enumerate(service.method):
            yield (*path, _METHODS, number), f"{service.name}.{method.name}"


@pytest.mark.parametrize("name", FILES)
def test_everything_in_the_contract_has_a_comment(name: str) -> None:
    file = files()[name]
    comments = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
    assert [what for path, what in everything(file) if not comments.get(path)] == []


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_what_it_is_about_and_its_folder_is_its_package(name: str) -> None:
    file = files()[name]
    assert (ROOT / name).read_text().startswith("// ")
    assert file.syntax == "proto3"
    assert file.package == str(Path(name).parent).replace("/", ".")
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*\.proto", Path(name).name)


@pytest.mark.parametrize("name", FILES)
def test_enums_begin_with_unspecified_and_their_values_carry_their_name(name: str) -> None:
    for _, enum in enums(files()[name]):
        prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
        assert (enum.value[0].name, enum.value[0].number) == (f"{prefix}UNSPECIFIED", 0)
        assert [value.name for value in enum.value if not value.name.startswith(prefix)] == []
        assert not enum.options.allow_alias


@pytest.mark.parametrize("name", FILES)
def test_a_call_takes_its_own_request_and_gives_its_own_response(name: str) -> None:
    package = files()[name].package
    for _, service in services(files()[name]):
        assert service.name.endswith("Service")
        for method in service.method:
            assert method.input_type == f".{package}.{method.name}Request"
            assert method.output_type == f".{package}.{method.name}Response"


def test_no_two_calls_share_a_request_or_a_response() -> None:
    names = [method.name for file in files().values() for service in file.service for method in service.method]
    assert sorted(names) == sorted(set(names))
    assert names


@pytest.mark.parametrize("name", FILES)
def test_names_have_the_usual_case(name: str) -> None:
    for _, message in messages(files()[name]):
        assert re.fullmatch(r"([A-Z][a-z0-9]*)+", message.name), message.name
        for field in message.field:
            assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", field.name), field.name


@pytest.mark.parametrize("name", FILES)
def test_numbers_and_names_that_are_reserved_are_not_used_again(name: str) -> None:
    """protoc refuses it too; here it says which, and the ranges are seen to be sane."""
    for _, message in messages(files()[name]):
        numbers = [field.number for field in message.field]
        assert len(numbers) == len(set(numbers))
        for span in message.reserved_range:
            assert [number for number in numbers if span.start <= number < span.end] == [], message.name
        assert {field.name for field in message.field}.isdisjoint(message.reserved_name), message.name


@pytest.mark.parametrize("name", FILES)
def test_a_gap_in_the_numbers_of_an_enum_is_reserved(name: str) -> None:
    for _, enum in enums(files()[name]):
        used = {value.number for value in enum.value}
        reserved = {number for span in enum.reserved_range for number in range(span.start, span.end + 1)}
        assert set(range(max(used))) <= used | reserved, enum.name


@pytest.mark.parametrize("name", FILES)
def test_no_field_is_required_and_nothing_is_deprecated_without_a_word(name: str) -> None:
    file = files()[name]
    comments = {tuple(place.path): place.leading_comments.lower() for place in file.source_code_info.location}
    for path, message in messages(file):
        for number, field in enumerate(message.field):
            assert field.label != field.LABEL_REQUIRED
            if field.options.deprecated:
                assert "deprecated" in comments[*path, _FIELDS, number], field.name
