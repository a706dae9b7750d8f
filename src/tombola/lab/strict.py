"""Frozen dataclasses to plain JSON values and back, strictly: every field is written, nothing guessed when reading.

Fields may be declared as bool, int, float, str, None, Literal, tuples of any length, string-keyed mappings,
dataclasses, and unions of these; as a callable or a protocol if what they hold has a name. A field that may hold a
callable or None is no data: it must be None, and is left out.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

from tombola.lab.errors import LabError

Plain: TypeAlias = Any  # what JSON has: None, bool, int, float, str, list, dict

_SCALARS = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", types.NoneType: "null"}


class _Mismatch(Exception):
    """A value that does not fit; ``key`` says where it stands."""

    def __init__(self, message: str, *, key: str = "") -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Codec:
    """Writes and reads dataclasses.

    kinds: names of the dataclasses that a union or a protocol may hold: their ``"kind"`` in the file.
    functions: names of the callables that a field may hold.
    """

    kinds: Mapping[str, type]
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def encode(self, value: object) -> Plain:
        """A dataclass as plain values, each in the one form that its type has (1 in a float field becomes 1.0).

        Raises:
            LabError: a field's value is not of its declared type.
        """
        return self._plain(self.decode(self._plain(value), type(value), where=""))

    def decode(self, plain: Plain, cls: type, *, where: str) -> Any:
        """The dataclass ``cls`` that ``plain`` stands for. ``where``, a file's name say, begins each complaint.

        Raises:
            LabError: a key that is unknown or missing, a value of the wrong type or out of its range.
        """
        try:
            return self._dataclass(plain, cls, "")
        except _Mismatch as mismatch:
            raise LabError(f"{where}: {mismatch}" if where else str(mismatch)) from None

    def _plain(self, value: object) -> Plain:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {name: self._plain(getattr(value, name)) for name in _data_fields(value)}
            return {**self._tag(type(value)), **fields}
        if isinstance(value, tuple):
            return [self._plain(entry) for entry in value]
        if isinstance(value, Mapping):
            return {key: self._plain(entry) for key, entry in value.items()}
        if callable(value):
            return next((name for name, known in self.functions.items() if known is value), value)
        return value

    def _tag(self, cls: type) -> dict[str, str]:
        return next(({"kind": name} for name, known in self.kinds.items() if known is cls), {})

    def _decode(self, plain: Plain, hint: Any, key: str) -> Any:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            return self._union(plain, arguments, key)
        if origin is Literal:
            if not any(plain == choice and type(plain) is type(choice) for choice in arguments):
                raise _wrong(key, plain, _choice(arguments))
            return plain
        if origin is Callable:
            if not isinstance(plain, str) or plain not in self.functions:
                raise _wrong(key, plain, _choice(self.functions))
            return self.functions[plain]
        if origin is tuple:
            if not isinstance(plain, list):
                raise _wrong(key, plain, "a list")
            return tuple(self._decode(entry, arguments[0], f"{key}[{place}]") for place, entry in enumerate(plain))
        if origin is not None and issubclass(origin, Mapping):
            if not isinstance(plain, dict):
                raise _wrong(key, plain, "an object")
            return {name: self._decode(entry, arguments[1], _join(key, name)) for name, entry in plain.items()}
        if dataclasses.is_dataclass(hint):
            return self._dataclass(plain, typing.cast(type, hint), key)
        return _scalar(plain, hint, key)

    def _union(self, plain: Plain, hints: tuple[Any, ...], key: str) -> Any:
        classes = {name: known for name, known in self.kinds.items() if any(_stands_for(hint, known) for hint in hints)}
        if isinstance(plain, dict) and classes:
            kind = plain.get("kind")
            if not isinstance(kind, str) or kind not in classes:
                raise _wrong(_join(key, "kind"), kind, _choice(classes))
            return self._dataclass(plain, classes[kind], key)
        nameless = [hint for hint in hints if dataclasses.is_dataclass(hint)]
        if isinstance(plain, dict) and len(nameless) == 1:
            return self._dataclass(plain, typing.cast(type, nameless[0]), key)
        complaints = []
        for hint in (hint for hint in hints if not _is_protocol(hint)):
            try:
                return self._decode(plain, hint, key)
            except _Mismatch as mismatch:
                if mismatch.key != key and mismatch.key.startswith(key):
                    raise  # the value is of this kind, and what is wrong lies inside it
                complaints.append(str(mismatch))
        wanted = dict.fromkeys(complaint.rpartition("must be ")[2] for complaint in complaints)
        raise _wrong(key, plain, " or ".join(wanted))

    def _dataclass(self, plain: Plain, cls: type, key: str) -> Any:
        if not isinstance(plain, dict):
            raise _wrong(key, plain, "an object")
        tag, hints = self._tag(cls), _hints(cls)
        expected = (*tag, *hints)
        for name in plain:
            if name not in expected:
                raise _Mismatch(f"unknown key {_join(key, name)!r}; known are {', '.join(expected)}")
        for name in expected:
            if name not in plain:
                raise _Mismatch(f"the key {_join(key, name)!r} is missing")
        if tag and plain["kind"] != tag["kind"]:
            raise _wrong(_join(key, "kind"), plain["kind"], json.dumps(tag["kind"]))
        values = {name: self._decode(plain[name], hint, _join(key, name)) for name, hint in hints.items()}
        try:
            return cls(**values)
        except ValueError as error:
            raise _Mismatch(f"{key}: {error}" if key else str(error)) from None


def parse(text: str, *, where: str) -> Plain:
    """JSON text to plain values. A key given twice, NaN and infinities are mistakes.

    Raises:
        LabError: it is not JSON, or holds one of these; ``where`` begins the message.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"the key {twice[0]!r} is there twice")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON value")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise LabError(f"{where}: not valid JSON: {error}") from None


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    """Name -> declared type of the fields that are data, in order."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if not _is_callable(hints[f.name])}


def _data_fields(value: Any) -> list[str]:
    cls: type = type(value)
    names = list(_hints(cls))
    for f in dataclasses.fields(value):
        if f.name not in names and getattr(value, f.name) is not None:
            raise LabError(f"{f.name} of {type(value).__name__} is a function, which a file cannot hold; leave it None")
    return names


def _is_callable(hint: Any) -> bool:
    """Whether it may be a callable or something else."""
    return any(get_origin(choice) is Callable for choice in get_args(hint))


def _is_protocol(hint: Any) -> bool:
    return getattr(hint, "_is_protocol", False)


def _stands_for(hint: Any, cls: type) -> bool:
    return hint is cls or (_is_protocol(hint) and issubclass(cls, hint))


def _scalar(plain: Plain, hint: Any, key: str) -> Any:
    if hint is float and type(plain) in (int, float):
        try:
            number = float(plain)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
        raise _wrong(key, plain, "a finite number")
    if hint is types.NoneType and plain is None:
        return None
    if type(plain) is hint:
        return plain
    raise _wrong(key, plain, _SCALARS[hint])


def _wrong(key: str, plain: Plain, wanted: str) -> _Mismatch:
    kinds: dict[type, str] = {dict: "an object", list: "a list"}
    shown = kinds.get(type(plain)) or json.dumps(plain, default=repr)
    shown = shown if len(shown) <= 60 else shown[:59] + "…"
    return _Mismatch(f"{key or 'the content'} is {shown}, but must be {wanted}", key=key)


def _choice(options: typing.Iterable[object]) -> str:
    return " or ".join(json.dumps(option) for option in options)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
