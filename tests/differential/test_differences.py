"""The table, and what stories are made of; no kernel needed."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.differential import calls
from tests.differential.calls import Story
from tests.differential.compare import short
from tests.differential.differences import DIFFERENCES, DOCUMENT, document
from tests.differential.stage import Mode
from tests.differential.stories import stories

any_story = st.sampled_from(Mode).flatmap(stories)


def test_document_is_made_of_the_table() -> None:
    assert DOCUMENT.read_text() == document(), "run python -m tests.differential.differences"


def test_names_are_unique() -> None:
    assert len({difference.name for difference in DIFFERENCES}) == len(DIFFERENCES)


@given(any_story)
def test_story_can_be_pasted(story: Story) -> None:
    """What is printed of a story makes it again."""
    assert eval(short(story), vars(calls)) == story


@given(any_story)
def test_story_travels(story: Story) -> None:
    encoded = msgspec.msgpack.encode(story)
    assert msgspec.msgpack.decode(encoded, type=Story) == story


@given(stories(Mode.SIDECARS))
def test_proxies_never_block(story: Story) -> None:
    assert story.blocking == (False, False)
