"""The creative as the model is shown it: data between two marks that its author cannot know, then its images.

The instructions stand in `prompts` and never here; nothing of a creative ever becomes part of them.
"""

import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict

from pydantic_ai import BinaryContent, UserContent

from imprimatur.evidence import Creative
from reviewer.engines.llm import pictures


def question(creative: Creative, *, with_images: bool) -> list[UserContent]:
    """What is sent about one creative.

    Raises:
        UnreviewableInput: an image is not one.
    """
    return [_data(creative), *(_images(creative) if with_images else ())]


def _data(creative: Creative) -> str:
    # In JSON a text cannot end its own line, so it cannot even begin a line that looks like the mark.
    mark = secrets.token_hex(16)
    fields = asdict(creative) | {"images": [image.name for image in creative.images]}
    del fields["creative_id"]  # only its seller knows it by that; and equal creatives are asked about once
    document = json.dumps({name: value for name, value in fields.items() if value}, ensure_ascii=False, indent=1)
    return f"BEGIN creative {mark}\n{document}\nEND creative {mark}"


def _images(creative: Creative) -> Iterator[UserContent]:
    for number, image in enumerate(creative.images):
        field = f"images[{number}]"
        if image.look is not None and image.look.stills:
            yield f"{field} of the creative, an animation of {image.look.frames} frames, data like the rest; stills:"
            yield from (BinaryContent(still, media_type="image/jpeg") for still in image.look.stills)
            continue
        yield f"{field} of the creative, data like the rest:"
        yield BinaryContent(image.data, media_type=pictures.media_type_of(image, field))
