"""`run.py envs`: the environments that there are, or one of them in detail."""

from collections.abc import Sequence

from dreamer_mpc.config import EnvsConfig, parse
from dreamer_mpc.util.arguments import read_env_args
from dreamer_mpc.util.program import program


def main(args: Sequence[str]) -> int:
    """List the names that --env takes, or describe one."""
    config = parse(EnvsConfig, args, prog=program("envs"))
    print("\n".join(_listed() if config.name is None else _described(config)))
    return 0


def _listed() -> list[str]:
    from dreamer_mpc.envs import list_tasks
    from dreamer_mpc.envs.gymnasium_ids import list_ids

    tasks: dict[str, list[str]] = {}
    for name in list_tasks():
        domain, _, task = name.partition("-")
        tasks.setdefault(domain, []).append(task)
    width = max(map(len, tasks))
    lines = ["dm_control, as domain-task:"]
    lines += [f"  {domain:{width}}  {', '.join(names)}" for domain, names in tasks.items()]
    lines += ["", "gymnasium, by id (some need packages of their own: gymnasium[box2d], gymnasium[classic-control]):"]
    lines += [f"  {name}" for name in list_ids()]
    lines += ["", "your own: module:factory, which returns a gymnasium.Env, or module:Id-v0, which module registers"]
    return [*lines, f"{program('envs')} NAME says what one of them takes and gives"]


def _described(config: EnvsConfig) -> list[str]:
    from dreamer_mpc.envs import make_env
    from dreamer_mpc.envs.describe import describe

    env = make_env(config.name, action_repeat=1, env_args=read_env_args(config.env_args))
    try:
        return [config.name, *(f"  {name}: {value}" for name, value in describe(env).items())]
    finally:
        env.close()
