"""The examples of the documentation work as described there."""

from pathlib import Path

import torch

from tests import example_env, example_model

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_the_custom_world_model_is_driven_to_the_origin():
    torch.manual_seed(0)
    assert example_model.drive(40).norm() < 0.1
    assert torch.tensor([1.0, 0.0]).norm() > 0.9  # the norm at the start


def test_pages_show_the_examples_as_they_are():
    for module, page in ((example_env, "environments.md"), (example_model, "planners.md")):
        code = Path(module.__file__).read_text()
        body = code[code.index("class ") : code.index("\n\n\nif __name__") if "__main__" in code else None].strip()
        assert body in (DOCS / page).read_text(), f"the copy of {module.__name__} in {page} is out of date"
