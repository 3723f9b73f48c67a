"""Shapes in signatures are checked in every test, on the first calls of each function."""

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

from dreamer_mpc.config.load import whole
from dreamer_mpc.util.returns import lambda_weights
from tests.support import typecheck


@pytest.mark.parametrize("test", [1, 2])
def test_the_first_calls_in_a_test_are_checked(test):
    for _ in range(typecheck.CALLS):
        with pytest.raises(TypeCheckError):
            lambda_weights("15", 0.99, 0.95, torch.device("cpu"), torch.float32)
    with pytest.raises((TypeError, AttributeError, ValueError)):
        lambda_weights("15", 0.99, 0.95, torch.device("cpu"), torch.float32)


def test_functions_that_name_no_shape_are_checked_too():
    with pytest.raises(BeartypeCallHintParamViolation):
        whole(3)
