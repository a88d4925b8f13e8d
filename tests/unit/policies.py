"""Any valid policy, for Hypothesis."""

from collections.abc import Sequence

from hypothesis import strategies as st

from imprimatur.criteria import Criterion, Effect
from imprimatur.evidence import Category
from imprimatur.policy import Mode, Policy

CRITERIA = tuple(
    Criterion(name=name, text=text, effect=effect)
    for name in ("prices", "rivals")
    for text in ("As the law says.", "\n„Ohne“ 🙂")
    for effect in Effect
)
probabilities = st.floats(0, 1)
some_categories = st.frozensets(st.sampled_from(Category), max_size=6)


@st.composite
def policies(draw: st.DrawFn, *, modes: Sequence[Mode] = tuple(Mode)) -> Policy:
    low, high = sorted(draw(st.lists(probabilities, min_size=2, max_size=2, unique=True)))
    least, most = sorted(draw(st.lists(probabilities, min_size=2, max_size=2, unique=True)))
    always_human = draw(some_categories)
    return Policy(
        mode=draw(st.sampled_from(modes)),
        auto_reject_threshold=low,
        auto_approve_threshold=high,
        detect_min=least,
        block_min=most,
        always_human=always_human,
        blocked=draw(some_categories) - always_human,
        model=draw(st.none() | st.text(min_size=1, max_size=20)),
        criteria=tuple(draw(st.lists(st.sampled_from(CRITERIA), max_size=2, unique_by=lambda one: one.name))),
        reuse_evidence=draw(st.booleans()),
    )
