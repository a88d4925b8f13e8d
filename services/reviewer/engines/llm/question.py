"""The creative as the model is shown it: data between two marks that its author cannot know, then its images. The
tenant's criteria come before it, between marks of their own.

The instructions stand in `prompts` and never here; nothing of a creative or a criterion ever becomes part of them.
"""

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from pydantic_ai import BinaryContent, UserContent

from imprimatur.criteria import Criteria
from imprimatur.evidence import Creative
from reviewer.engines.llm import pictures
from reviewer.engines.llm.answer import ids_of


def question(creative: Creative, criteria: Criteria = (), *, with_images: bool) -> list[UserContent]:
    """What is sent about one creative.

    Raises:
        UnreviewableInput: an image is not one.
    """
    asked = [_criteria(criteria)] if criteria else []
    return [*asked, _creative(creative), *(_images(creative) if with_images else ())]


def _criteria(criteria: Criteria) -> str:
    return _marked("criteria", {id_: {"name": one.name, "text": one.text} for id_, one in ids_of(criteria).items()})


def _creative(creative: Creative) -> str:
    fields = asdict(creative) | {"images": [image.name for image in creative.images]}
    del fields["creative_id"]  # only its seller knows it by that; and equal creatives are asked about once
    return _marked("creative", {name: value for name, value in fields.items() if value})


def _marked(what: str, data: Mapping[str, object]) -> str:
    # In JSON a text cannot end its own line, so it cannot even begin a line that looks like the mark.
    mark = secrets.token_hex(16)
    document = json.dumps(data, ensure_ascii=False, indent=1)
    return f"BEGIN {what} {mark}\n{document}\nEND {what} {mark}"


def _images(creative: Creative) -> Iterator[UserContent]:
    for number, image in enumerate(creative.images):
        field = f"images[{number}]"
        if image.look is not None and image.look.stills:
            yield f"{field} of the creative, an animation of {image.look.frames} frames, data like the rest; stills:"
            yield from (BinaryContent(still, media_type="image/jpeg") for still in image.look.stills)
            continue
        yield f"{field} of the creative, data like the rest:"
        yield BinaryContent(image.data, media_type=pictures.media_type_of(image, field))
