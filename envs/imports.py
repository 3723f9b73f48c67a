"""Importing a module that the user named, from the working folder or the installed packages."""

import importlib
import importlib.util
import os
import sys
from importlib.machinery import PathFinder
from types import ModuleType


def import_module(name: str) -> ModuleType:
    """The module `name`; one in the working folder comes before an installed one of that name.

    Other files of that folder are found as well, but last: it may hold a `profile.py` or `tensorboard.py`, which must
    not be imported in place of Python's or of an installed package's.
    """
    folder = os.getcwd()
    if not {"", folder} & set(sys.path):
        sys.path.append(folder)
    package = name.partition(".")[0]
    if package not in sys.modules and not is_standard(package):
        _import_from(folder, package)
    return importlib.import_module(name)


def is_of_folder(name: str) -> bool:
    """Whether an imported package or module lies in the working folder."""
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return os.path.dirname(os.path.dirname(file) if os.path.basename(file) == "__init__.py" else file) == os.getcwd()


def is_standard(name: str) -> bool:
    """Whether it is, or is in, a module of Python's standard library."""
    return name.partition(".")[0] in sys.stdlib_module_names


def _import_from(folder: str, package: str) -> None:
    """Import a module or package that lies in `folder`; do nothing where there is none.

    A folder without `__init__.py` is left to the usual import, where a real package of that name has precedence.
    """
    spec = PathFinder.find_spec(package, [folder])
    if spec is None or spec.origin is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(package, None)
        raise
