"""The imports between the folders of dreamer_mpc, read from their files.

    python -m scripts.arrows

`ORDER` lists the folders from the top down. An import that points up in it, or a cycle, is an error: exit code 1.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "dreamer_mpc"
ORDER = (
    "library", "sweeps", "training", "analysis", "evaluation", "report", "runs", "config", "data", "rendering",
    "agents", "planners", "world_model", "networks", "kernels", "util", "envs",
)  # fmt: skip


def arrows(root: Path = ROOT) -> dict[str, dict[str, list[str]]]:
    """For each folder, the folders that it imports from, and the files that do."""
    found: dict[str, dict[str, list[str]]] = {folder: {} for folder in ORDER}
    for file in sorted(root.glob("*/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                package, _, rest = name.partition(".")
                target, own = rest.partition(".")[0], file.parent.name
                if package == "dreamer_mpc" and target and target != own:
                    found[own].setdefault(target, []).append(file.name)
    return found


def upward(found: dict[str, dict[str, list[str]]]) -> list[str]:
    """Lines about imports that point up."""
    rank = {folder: i for i, folder in enumerate(ORDER)}
    return [
        f"{folder}/{file} imports from {target}"
        for folder, targets in found.items()
        for target, files in targets.items()
        for file in dict.fromkeys(files)
        if rank.get(target, -1) < rank[folder]
    ]


def main() -> int:
    """Print the table."""
    found = arrows()
    for folder, targets in found.items():
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in (ROOT / folder).glob("*.py"))
        print(f"{folder:12} {lines:5} lines -> {', '.join(sorted(targets, key=ORDER.index))}")
    for line in upward(found):
        print(f"points up: {line}", file=sys.stderr)
    return 1 if upward(found) else 0


if __name__ == "__main__":
    sys.exit(main())
