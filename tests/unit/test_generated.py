"""What `make docs` writes: files that are written or compared, and texts between two comments of a page."""

from pathlib import Path

import pytest

from docs.generated import placed, write_or_compare


@pytest.fixture
def files(tmp_path: Path) -> dict[Path, str | None]:
    """One that is stale, one that is missing, one that should not be there, one that is as it should be."""
    stale, missing, surplus, current = (tmp_path / name for name in ("stale", "missing", "surplus", "current"))
    for path in (stale, surplus, current):
        path.write_text(path.name)
    return {stale: "new", missing: "new", surplus: None, current: "current"}


def test_files_are_brought_to_what_is_wanted(files: dict[Path, str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["docs"])
    assert write_or_compare(files) == 0
    assert {path: path.read_text() if path.exists() else None for path in files} == files
    monkeypatch.setattr("sys.argv", ["docs", "--check"])
    assert write_or_compare(files) == 0


def test_with_check_they_are_only_told_of(
    files: dict[Path, str | None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.exists() and path.read_text() for path in files}
    monkeypatch.setattr("sys.argv", ["docs", "--check"])
    assert write_or_compare(files) == 1
    assert [line.split(";")[0].rsplit("/")[-1] for line in capsys.readouterr().err.splitlines()] == [
        "stale",
        "missing",
        "surplus",
    ]
    assert {path: path.exists() and path.read_text() for path in files} == before


def test_a_text_takes_the_place_of_what_stood_between_its_comments() -> None:
    assert placed("new\n", "a\n<b>\nold\n<e>\nz", begin="<b>\n", end="<e>") == "a\n<b>\nnew\n<e>\nz"


@pytest.mark.parametrize("page", ["a\nold\n<e>\n", "<b>\nold\n", "<e>\n<b>\nold"])
def test_a_page_without_its_place_is_not_written_over(page: str) -> None:
    with pytest.raises(ValueError, match="lost"):
        placed("new\n", page, begin="<b>\n", end="<e>")
