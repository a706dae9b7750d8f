"""A user's own model or data set, named ``module:function``."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tombola.lab.errors import LabError


def resolve(name: str, what: str) -> Callable[..., Any]:
    """The function that ``name`` ("module:function") stands for; modules of the current folder are found too.

    Raises:
        LabError: the module or the function is not there, cannot be imported, or is not callable.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise LabError(f"{what} {name!r}: give the name of a built-in one, or your own as module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that a file in this folder cannot hide an installed package
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        where = "in this folder or installed" if error.name == module_name else f"and {module_name} imports it"
        raise LabError(f"{what} {name!r}: there is no module {error.name!r} {where}") from error
    except (Exception, SystemExit) as error:  # a script may leave as soon as it is imported
        raise LabError(f"{what} {name!r}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        problem = f"no function {attribute!r}" if function is None else f"{attribute!r}, but that is no function"
        where = getattr(module, "__file__", None) or "built into Python"
        raise LabError(f"{what} {name!r}: module {module_name} ({where}) has {problem}")
    return function  # type: ignore[no-any-return]


def call(function: Callable[..., Any], name: str, what: str, arguments: Mapping[str, object]) -> Any:
    """Call ``function`` with those of ``arguments`` that it has parameters for and that are not None.

    Raises:
        LabError: it wants one that is None, or other arguments besides, or fails.
    """
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables written in C do not say
        parameters = {}
    wanted = {key: value for key, value in arguments.items() if key in parameters and value is not None}
    missing = [
        key
        for key, parameter in parameters.items()
        if key not in wanted
        and parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if missing and missing[0] in arguments:
        raise LabError(f"{what} {name!r} needs {missing[0]}; give it with --{missing[0].replace('_', '-')}")
    if missing:
        offered = ", ".join(arguments)
        raise LabError(f"{what} {name!r} needs the argument {missing[0]!r}; it may only need some of: {offered}")
    try:
        return function(**wanted)
    except LabError:
        raise
    except Exception as error:
        raise LabError(f"{what} {name!r} failed: {type(error).__name__}: {error}") from error
