"""What the name of an environment stands for: a task of dm_control, an id of gymnasium, or a factory of one's own."""

import re

MUJOCO = "gymnasium.envs.mujoco"  # the module of gymnasium's environments that render as dm_control does
GYMNASIUM = re.compile(r"-v\d+$")  # HalfCheetah-v5, ALE/Pong-v5, my_envs:Robot-v0


def is_gymnasium_id(name: str) -> bool:
    """Whether it is one: it ends with a version. `module:Id-v0` imports the module, which registers it, first."""
    return GYMNASIUM.search(name) is not None


def is_task(name: str) -> bool:
    """Whether it is a task of dm_control's suite, `domain-task`; else the environment is made by foreign code."""
    return ":" not in name and not is_gymnasium_id(name)


def is_factory(name: str) -> bool:
    """Whether it is `module:factory`, whose environment draws itself."""
    return not is_task(name) and not is_gymnasium_id(name)


def draws_itself(name: str) -> bool:
    """Whether render qualities have no effect on it: a factory's environment, and one of gymnasium without MuJoCo.

    The module of `module:Id-v0` is not imported for that: such an environment counts as one that draws itself.
    """
    if not is_gymnasium_id(name):
        return is_factory(name)
    import gymnasium  # takes a moment, for few names

    spec = gymnasium.registry.get(name)
    return spec is None or not str(spec.entry_point).startswith(MUJOCO)
