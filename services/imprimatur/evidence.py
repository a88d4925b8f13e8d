"""What is reviewed and what an engine found: creatives in, evidence out.

Only values live here. How evidence becomes a decision is `policy`; how it is found is `reviewer.engines`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class Category(StrEnum):
    """What an ad may touch. The first group follows the sensitive topics of the IAB Ad Product Taxonomy 2.0,
    the second the categories usual in content moderation."""

    POLITICAL = "political"
    HEALTHCARE = "healthcare"
    PHARMACEUTICAL = "pharmaceutical"
    FINANCIAL = "financial"
    ALCOHOL = "alcohol"
    TOBACCO = "tobacco"
    CANNABIS = "cannabis"
    GAMBLING = "gambling"
    WEAPONS = "weapons"
    ADULT = "adult"
    DIETING = "dieting"
    CRYPTO = "crypto"
    SENSITIVE_SOCIAL_ISSUE = "sensitive_social_issue"

    HATE = "hate"
    HARASSMENT = "harassment"
    VIOLENCE = "violence"
    SELF_HARM = "self_harm"
    ILLICIT = "illicit"
    SCAM = "scam"


#: Lawful, and for a person to decide.
SENSITIVE = frozenset(
    {
        Category.POLITICAL,
        Category.HEALTHCARE,
        Category.PHARMACEUTICAL,
        Category.FINANCIAL,
        Category.ALCOHOL,
        Category.TOBACCO,
        Category.CANNABIS,
        Category.GAMBLING,
        Category.WEAPONS,
        Category.ADULT,
        Category.DIETING,
        Category.CRYPTO,
        Category.SENSITIVE_SOCIAL_ISSUE,
    }
)
#: What no publisher would run.
FORBIDDEN = frozenset(Category) - SENSITIVE


class UnknownCategory(str):
    """What a seller declares in the words of a later version, as "unknown category 20". It is a person's to understand,
    as all that is sensitive."""

    __slots__ = ()


#: What a seller says that an ad touches.
Declared: TypeAlias = Category | UnknownCategory


class Part(StrEnum):
    """A kind of content that a creative can have and that an engine may or may not be able to examine."""

    LANGUAGE = "language"  #: the text is in a language that the engine does not read
    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"


class Recommendation(StrEnum):
    """What an engine would do. Advice only: `policy.decide` decides."""

    APPROVE = "approve"
    REJECT = "reject"
    HUMAN = "human"


MOST_SHRUNK = 2.0  #: times; what was fine print in an image that was made smaller still, nobody can read


@dataclass(frozen=True, kw_only=True)
class Look:
    """What an image was found to be when it was decoded."""

    format: str  #: PNG, JPEG, GIF or WEBP
    width: int
    height: int
    frames: int
    sampled: int  #: frames that were decoded
    plain: bool  #: one colour all over
    stills: tuple[bytes, ...] = ()  #: of an animation: its sampled frames in order, as JPEGs of at most 1,024 px
    shrunk: float = 1.0  #: how many times longer its sides are than those of its stills

    def shown_whole(self, *, most_side_px: int) -> bool:
        """Whether who is shown the image, or its stills, sees all of it. One with a longer side than `most_side_px` is
        made smaller before it is seen, and by how much only the provider knows."""
        if max(self.width, self.height) > most_side_px:
            return False
        return self.frames == 1 or (len(self.stills) == self.frames and self.shrunk <= MOST_SHRUNK)


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of a creative: encoded bytes (PNG, JPEG, GIF or WebP), or where to get them; one of the three.

    Engines are given the bytes, whatever their source, and the look of them.
    """

    name: str
    data: bytes = b""
    asset_id: str = ""
    url: str = ""
    look: Look | None = None


@dataclass(frozen=True, kw_only=True)
class Creative:
    """One ad as its seller submits it. Texts are plain Unicode; absent ones are empty."""

    creative_id: str
    name: str = ""
    format: str = ""
    headline: str = ""
    body: str = ""
    call_to_action: str = ""
    advertiser: str = ""
    landing_page_url: str = ""
    language: str = ""  #: BCP 47 tag as declared by the caller, or empty
    declared_categories: tuple[Declared, ...] = ()
    images: tuple[Image, ...] = ()
    video_urls: tuple[str, ...] = ()
    audio_urls: tuple[str, ...] = ()

    def texts(self) -> tuple[tuple[str, str], ...]:
        """(field name, text) of each text a reader of the ad would see, empty ones left out."""
        fields = ("headline", "body", "call_to_action", "name", "advertiser")
        return tuple((field, text) for field in fields if (text := getattr(self, field)))


@dataclass(frozen=True, kw_only=True)
class CategoryScore:
    """P(the creative belongs to `category`), in [0, 1]."""

    category: Category
    score: float


@dataclass(frozen=True, kw_only=True)
class CriterionScore:
    """P(the creative breaks one of the tenant's criteria), in [0, 1].

    `fingerprint` is the criterion's as it was examined: one that was reworded since has not been.
    """

    name: str
    fingerprint: str
    score: float
    explanation: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing worth a person's look: what it is, how sure, and the words or measure that show it."""

    category: Category | None
    score: float
    field: str  #: e.g. "headline", "images[0]"
    quote: str  #: the words of the creative, or a measured fact such as "2 x 2 px"
    explanation: str


@dataclass(frozen=True, kw_only=True)
class EngineIdentity:
    """Which engine, exactly: recorded in every result."""

    name: str
    version: str
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one engine found in one creative.

    `approval_score` is P(compliant) in [0, 1]. `unexamined` names every part that the creative has and the
    engine could not look at: an engine that leaves one out here claims to have examined it. Tokens and cost are those
    that a provider is paid for; an engine that asks none has none.
    """

    engine: EngineIdentity
    approval_score: float
    recommendation: Recommendation
    reason: str
    categories: tuple[CategoryScore, ...]
    findings: tuple[Finding, ...] = ()
    examined_categories: frozenset[Category] = frozenset(Category)
    unexamined: frozenset[Part] = frozenset()
    truncated: bool = False
    criteria: tuple[CriterionScore, ...] = ()  #: those of the tenant's that the engine examined
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int = 0  #: millionths of a US dollar
