"""Which tasks of dm_control are rich in contacts: those whose bodies push off the ground, catch or grasp."""

CONTACT_RICH = (
    "ball_in_cup", "cheetah", "dog", "finger", "hopper", "humanoid", "humanoid_CMU", "manipulator", "quadruped",
    "stacker", "walker",
)  # fmt: skip
SMOOTH = ("acrobot", "cartpole", "fish", "lqr", "pendulum", "point_mass", "reacher", "swimmer")


def group_of(task: str) -> str:
    """`contact-rich`, `smooth`, or `other` for an environment that is not of the suite."""
    domain = task.split("-", 1)[0]
    return "contact-rich" if domain in CONTACT_RICH else "smooth" if domain in SMOOTH else "other"
