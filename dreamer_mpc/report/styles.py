"""One colour and marker for each method, in every picture, video and page."""

import zlib
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from dreamer_mpc.report.rows import without_quality


class Style(NamedTuple):
    """How a method is drawn: a colour `#rrggbb`, and a marker of matplotlib for readers who do not see colours."""

    color: str
    marker: str


BASELINE = Style("#E69F00", "s")
SAMPLED = Style("#E88FC0", "p")
# By the names of planners, and by those that papers give to agents; distinct under red- and green-blindness
# (tests/test_styles.py).
STYLES = {
    "policy": BASELINE,
    "dreamer": BASELINE,  # the agent that acts by its policy
    "dream-mpc": Style("#0072B2", "o"),
    "dream-mpc-default": Style("#00335C", "D"),
    "dream-mpc-paper": Style("#56B4E9", "^"),
    "dream-mpc-released": Style("#8A5CE0", "v"),
    "dream-mpc-cpu": Style("#00755E", "P"),
    "policy-grad-mpc": Style("#A8C256", "X"),
    "grad-mpc": Style("#7A4A2B", "<"),
    "cem": SAMPLED,
    "planet": SAMPLED,  # the agent that acts by CEM
    "mppi": Style("#C8420A", ">"),
    "sac-ae": Style("#9A9A9A", "d"),
}
OTHERS = (
    Style("#000000", "h"), Style("#9C0C5B", "8"), Style("#F4CE4B", "H"), Style("#C7B8F2", "*"), Style("#6E6B1E", "s"),
    Style("#00C2B2", "o"), Style("#5B6770", "^"), Style("#D98C8C", "D"),
)  # fmt: skip
# Planners and agents by the names that readers know.
NAMES = {
    "dream-mpc": "Dream-MPC", "dreamer": "Dreamer", "planet": "PlaNet", "sac-ae": "SAC+AE", "policy-grad-mpc":
    "Policy+Grad-MPC", "grad-mpc": "Grad-MPC", "cem": "CEM", "mppi": "MPPI",
}  # fmt: skip


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """The style of each method of a picture.

    A method of a sweep, `planner setting=value`, has its planner's; but not the policy's, which is what the others are
    compared with. A render quality at the end of a name counts only
    where the method is there with several. Other names get one that follows from the name; where two in one picture
    would share it, the later one in the alphabet takes the next that is free. Beyond eight of these, colours return
    with other markers.
    """
    methods = list(dict.fromkeys(methods))
    alike = Counter(map(without_quality, methods))
    names = {method: method if alike[without_quality(method)] > 1 else without_quality(method) for method in methods}
    planners = {method: _planner(name) for method, name in names.items()}
    chosen = {planner: STYLES[planner] for planner in planners.values() if planner in STYLES}
    other = sorted(set(planners.values()) - STYLES.keys())
    for turn, begin in enumerate(range(0, len(other), len(OTHERS))):
        looks = [Style(o.color, OTHERS[(i + turn) % len(OTHERS)].marker) for i, o in enumerate(OTHERS)]
        free = list(looks)
        for method in other[begin : begin + len(OTHERS)]:
            chosen[method] = _at(looks, free, method)
            free.remove(chosen[method])
    return {method: chosen[planner] for method, planner in planners.items()}


def _at(looks: list[Style], free: list[Style], method: str) -> Style:
    """The first style from the name's place on that is still free."""
    place = zlib.crc32(method.encode()) % len(looks)
    return next(style for style in looks[place:] + looks[:place] if style in free)


def style(method: str) -> Style:
    """The style of a method that is drawn alone."""
    return styles([method])[method]


def in_words(method: str) -> str:
    """A method by the name that readers know, with the render quality if that is another than its training's."""
    name = without_quality(method)
    return NAMES.get(name, name) + method.removeprefix(name)


def _planner(method: str) -> str:
    """The planner of a sweep's label, unless it is the policy; other names, which may have spaces, are whole."""
    first, *settings = method.split(" ")
    return first if settings and first != "policy" and all("=" in word for word in settings) else method
