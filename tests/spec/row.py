"""A row of the table of bad input."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tests.scrape.model_server import good
from tests.spec.scene import PLAIN, Scene
from tests.spec.story import PAGE, Seen, Story
from tests.spec.words import Counted, Expected

AT_ONCE = "at the first scrape"
AT_THIRD = "at the third scrape in a row"
AT_THIRD_QUESTION = "at the third question in a row, for its page or its health"
AT_FIRST_WORD = "at the first answer of the health path"
AT_THIRD_WORD = "at the third question for its health in a row"
AT_STALE = "at the first scrape; what it lacks is stale after `state.staleAfter`"


async def mended(story: Story) -> None:
    """The server is as it was."""
    story.bad.page = PAGE
    await story.bad.turn(good)


class Row(NamedTuple):
    """A fault: what the server does, from when on the exits say so, what each says, and what is counted.

    `do` makes it happen, and gives what was seen before it had its whole effect; `mend` ends it. `scene` is what stands
    around the endpoints.
    """

    fault: str
    what: str
    do: Callable[[Story], Awaitable[Seen]]
    since: str
    picker: Expected
    state: Expected
    gauges: Expected
    metrics: Expected
    counts: tuple[Counted, ...]
    endpoints: int = 2
    scene: Scene = PLAIN
    mend: Callable[[Story], Awaitable[None]] = mended
