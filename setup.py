"""Package metadata: ranges here, the versions it was tested with in constraints.txt."""

from setuptools import find_packages, setup

setup(
    name="dreamer-mpc",
    version="0.1.0",
    description="Planning with pixel world models: Dreamer whose actions are refined by Dream-MPC",
    python_requires=">=3.11,<3.13",  # labmaze, which dm_control needs, has no wheel after that
    packages=find_packages(include=["dreamer_mpc*", "envs*"]),
    install_requires=[
        "torch>=2.8",
        "numpy>=2.0",
        "scipy>=1.14",
        "dm-control>=1.0.50",
        "mujoco>=3.17,<4",  # dm_control 1.0.50 breaks at import under mujoco 4
        "gymnasium>=1.4,<2",
        "opencv-python-headless>=4.10",
        "einops>=0.8",
        "safetensors>=0.6",
        "jaxtyping>=0.3.2",
        "omegaconf>=2.4",
        "tyro>=1.0",
        "rich>=13",
        "psutil>=5.9",
        "matplotlib>=3.9",
        "imageio>=2.36",
        "imageio-ffmpeg>=0.6",
    ],
    extras_require={
        "wandb": ["wandb>=0.20"],
        "tensorboard": ["tensorboard>=2.18"],
        "slurm": ["submitit>=1.5.3"],
        "test": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "beartype>=0.20",
            "ruff>=0.11",
            "tensorboard>=2.18",
            "submitit>=1.5.3",
        ],
    },
)
