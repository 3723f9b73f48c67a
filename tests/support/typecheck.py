"""beartype as the tests use it: on the first calls of each function in a test, as all of them take much longer."""

import functools
import inspect

import jaxtyping
from beartype import BeartypeConf, beartype

CALLS = 10  # of a function in a test, whose arguments and results are checked
check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is accepted where a float is expected (PEP 484)
_jaxtyped, _tests = jaxtyping.jaxtyped, [0]


def begin_test() -> None:
    """From here on, the first calls of each function are checked again."""
    _tests[0] += 1


def names_shapes(fn) -> bool:
    """Whether an annotation of `fn` names a shape; jaxtyping takes much longer than beartype alone."""
    return any("jaxtyping." in repr(kind) or isinstance(kind, str) for kind in fn.__annotations__.values())


def jaxtyped_at_first(fn=None, **settings):
    """`jaxtyping.jaxtyped` for the first `CALLS` calls in a test; the import hook puts it on functions and classes."""
    if fn is None:
        return functools.partial(jaxtyped_at_first, **settings)
    if not inspect.isfunction(fn):
        return _jaxtyped(fn, **settings)
    checked, test, calls = None, 0, 0

    @functools.wraps(fn)
    def call(*args, **kwargs):
        nonlocal checked, test, calls
        if test != _tests[0]:
            test, calls = _tests[0], 0
        calls += 1
        if calls > CALLS:
            return fn(*args, **kwargs)
        if checked is None:  # here, as most functions are never called in a process
            checked = _jaxtyped(fn, **settings) if names_shapes(fn) else check(fn)
        return checked(*args, **kwargs)

    return call
