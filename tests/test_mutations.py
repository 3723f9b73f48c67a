"""The table of mutations fits the code. Running all of them takes minutes and is left to `scripts/mutations.py`."""

import re
from collections import Counter

import pytest

from scripts.mutations import MUTATIONS, ROOT, listed, mutated


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_row_s_piece_is_there_once_and_so_are_its_tests(mutation):
    source = (ROOT / mutation.file).read_text()
    changed = mutated(source, mutation)
    if mutation.file.endswith(".py"):
        compile(changed, mutation.file, "exec")
    assert mutation.new != mutation.old and mutation.tests
    for test in mutation.tests:
        file, _, function = test.partition("::")
        assert re.search(rf"^def {function or 'test_'}", (ROOT / file).read_text(), re.MULTILINE), test


def test_names_differ():
    assert max(Counter(mutation.name for mutation in MUTATIONS).values()) == 1


def test_a_piece_that_is_not_there_once_is_refused():
    mutation = MUTATIONS[0]
    for source in ("", 2 * mutation.old):
        with pytest.raises(ValueError, match=mutation.name):
            mutated(source, mutation)


def test_the_document_is_the_table():
    assert (ROOT / "docs" / "mutations.md").read_text() == listed(MUTATIONS) + "\n"
