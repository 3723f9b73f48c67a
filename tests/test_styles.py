"""Colours and markers of methods."""

import itertools

import numpy as np

from dreamer_mpc.config import PRESETS
from dreamer_mpc.planners import PLANNERS
from dreamer_mpc.report.styles import OTHERS, STYLES, style, styles

# Machado, Oliveira and Fernandes 2009, severity 1: what a colour becomes for each kind of eye, in linear RGB.
EYES = {
    "all colours": np.eye(3),
    "no green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(color, eye):
    """CIE L*a*b* of `#rrggbb` for an eye."""
    red_green_blue = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(red_green_blue <= 0.04045, red_green_blue / 12.92, ((red_green_blue + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(XYZ @ np.clip(eye @ linear, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_methods_are_told_apart_by_every_eye_and_by_their_markers():
    colors = sorted({known.color for known in STYLES.values()})
    for name, eye in EYES.items():
        for one, other in itertools.combinations(colors, 2):
            assert np.linalg.norm(lab(one, np.array(eye)) - lab(other, np.array(eye))) > 10, (name, one, other)
    assert len({known.marker for known in STYLES.values()}) == len(colors)


def test_every_planner_has_a_style_of_its_own():
    names = {*PLANNERS, *(path.stem for path in (PRESETS / "planner").glob("*.yaml"))}
    assert names <= STYLES.keys() and len({STYLES[name] for name in names}) == len(names)


def test_a_name_s_style_depends_on_it_alone_until_two_would_be_equal():
    names = ["default", "again", "kernels off", "1 environment", "before", "after", "slow", "fast"]
    together = styles(names)
    assert len({style(name) for name in names}) < len(set(together.values())) == len(OTHERS), "no two in one picture"
    assert styles(reversed(names)) == together
    first = min(names)
    assert together[first] == style(first) == styles([first, "policy"])[first]
    many = [f"agent {number}" for number in range(3 * len(OTHERS))]
    assert len(set(styles(many).values())) == len(many), "colours return with other markers"


def test_settings_of_a_sweep_have_their_planner_s_style():
    assert style("dream-mpc step_size=0.1 caution=0") == STYLES["dream-mpc"]
    assert style("strange open_loop=0") == style("strange")
    assert style("dream-mpc, again") not in STYLES.values()
