"""Where words go: data to standard output, as tables for people or JSON for programs; all else to standard error.

What comes from a server or a seller's file may hold anything: nothing of it is taken as markup, and control
characters, which could steer the terminal, are made visible.
"""

import json
import sys
import unicodedata
from collections.abc import Callable
from datetime import datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console, RenderableType
from rich.text import Text

#: What JSON is made of.
Data = dict[str, Any] | list[dict[str, Any]]

#: Where output goes into a file or a pipe, lines are as long as they need to be, up to this.
_WIDTH_OF_A_PIPE = 300
#: Cc controls (ESC among them), Cf formats (direction overrides), and the line separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})


class Output:
    """Standard output in one of its two forms.

    Args:
        as_json: JSON in the protobuf mapping (lowerCamelCase, defaults left out) in place of tables.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE)

    def show(self, data: Message | Data, rendered: Callable[[], RenderableType]) -> None:
        """One answer: a JSON document, or what `rendered` makes."""
        if self.as_json:
            self.write(json.dumps(as_dict(data) if isinstance(data, Message) else data, indent=2))
        else:
            self.console.print(rendered())

    def line(self, message: Message) -> None:
        """One item of a stream as a line of JSON."""
        self.write(json.dumps(as_dict(message)))

    def write(self, text: str) -> None:
        """A line as it is, at once."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def as_dict(message: Message) -> dict[str, Any]:
    """The protobuf JSON mapping."""
    return MessageToDict(message)


def note(text: str) -> None:
    """Tell a person something beside the data."""
    sys.stderr.write(one_line(text) + "\n")


def complain(text: str) -> None:
    """Say what went wrong, in one line."""
    note(f"error: {text}")


def moment(time: datetime) -> str:
    """A time for people, in the reader's time zone."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def plain(text: object, style: str = "") -> Text:
    """Text for a table: no markup, no control characters; line breaks stay."""
    return Text("\n".join(_visible(line) for line in str(text).split("\n")), style=style)


def one_line(text: str) -> str:
    """The text in one line, safe for a terminal."""
    return _visible(" ".join(text.split()))


def _visible(text: str) -> str:
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _INVISIBLE else character
        for character in text
    )
