r"""The comment line of an extended XYZ frame: `key=value` pairs, parsed and formatted.

Values may be bare, quoted (`"..."` or `'...'`, a backslash escapes), bracketed (`{1 2 3}`, `[1, 2, 3]`,
`[[1, 2], [3, 4]]`) or JSON behind a leading `_JSON`. A key without a value means true.

Law: `parse_header(format_header(info))` equals `info` for vectors of numbers and whatever JSON can hold.

Reference: https://github.com/libAtoms/extxyz
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["LOGICAL", "format_header", "parse_header"]

LOGICAL = {"T": True, "True": True, "true": True, "F": False, "False": False, "false": False}
"""How the format spells true and false."""

_KEY = re.compile(r'\s*(?:"((?:[^"\\]|\\.)+)"|([^\s="\'{}\[\]]+))(\s*=\s*)?')
_VALUE = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'|\{([^{}]*)\}|([^\s"\'{}\[\]]\S*)')
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf)", re.ASCII | re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_BRACKET = re.compile(r"[\[\]]")
_ROW = re.compile(r"\[([^\[\]]*)\]")
_BARE = re.compile(r"[A-Za-z0-9_.:+/-]+", re.ASCII)


def parse_header(text: str) -> dict[str, Any]:
    """Parses one comment line.

    Args:
      text: the line.

    Returns:
      Values by key: bool, int, float, str, arrays `[n]` or `[n, m]` of numbers or booleans, or what JSON holds.

    Raises:
      ValueError: if the line does not follow the grammar or gives a key twice; the message starts with the key.

    Example:
      >>> parse_header('energy=-31.7 pbc="F F F" name="a b" dihedrals="_JSON [1.5, 2]" relaxed')["dihedrals"]
      [1.5, 2]
    """
    text = text.strip()
    info: dict[str, Any] = {}
    at = 0
    while at < len(text):
        match = _KEY.match(text, at)
        if match is None:
            raise ValueError(f"header: expected key=value at {text[at : at + 40]!r}")
        key, at = match[2] or _unescape(match[1]), match.end()
        if key in info:
            raise ValueError(f"{key}: given twice in one header")
        if match[3]:
            info[key], at = _parse_value(text, at, key)
        else:
            info[key] = True
        if at < len(text) and not text[at].isspace():
            raise ValueError(f"{key}: expected a space at {text[at : at + 40]!r}")
    return info


def _parse_value(text: str, at: int, key: str) -> tuple[Any, int]:
    if text.startswith("[", at):
        end = _closing_bracket(text, at, key)
        return _parse_brackets(text[at:end], key), end
    match = _VALUE.match(text, at)
    if match is None:
        raise ValueError(f"{key}: the value is empty or has no end at {text[at : at + 40]!r}")
    quoted = match[1] if match[1] is not None else match[2]
    content = _unescape(quoted) if quoted is not None else match[3] if match[3] is not None else match[4]
    return _interpret(content, key), match.end()


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _closing_bracket(text: str, start: int, key: str) -> int:
    depth = 0
    for match in _BRACKET.finditer(text, start):
        depth += 1 if match[0] == "[" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"{key}: the bracket at {text[start : start + 40]!r} is never closed")


def _parse_brackets(text: str, key: str) -> Any:
    if text.count("[") == 1:
        return np.atleast_1d(_interpret(text[1:-1], key))
    rows = [np.atleast_1d(_interpret(row, key)) for row in _ROW.findall(text)]
    if _ROW.sub("", text[1:-1]).strip(" ,\t") or len({row.shape for row in rows}) != 1:
        raise ValueError(f"{key}: got {text[:40]!r}, expected a vector or a matrix with rows of one length")
    return np.array(rows)


def _interpret(text: str, key: str) -> Any:
    """A logical, an integer, a real, a vector of these, the content of JSON, or else the text itself."""
    if text.startswith("_JSON"):
        try:
            return json.loads(text[len("_JSON") :])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{key}: {text[:40]!r} is not JSON ({error})") from error
    tokens = re.split(r"[\s,]+", text.strip())
    if all(_INTEGER.fullmatch(token) for token in tokens):
        values: list[Any] = [int(token) for token in tokens]
    elif all(_NUMBER.fullmatch(token) for token in tokens):
        values = [float(token) for token in tokens]
    elif all(token in LOGICAL for token in tokens):
        values = [LOGICAL[token] for token in tokens]
    else:
        return text
    return values[0] if len(values) == 1 else np.array(values)


def format_header(info: Mapping[str, Any]) -> str:
    """Formats one comment line that `parse_header` and `ase.io` read back; floats keep every bit.

    Args:
      info: values by key: bool, int, float, str, arrays, or anything that JSON can hold.

    Returns:
      The line, without a line break.

    Raises:
      ValueError: if a key is not a word or a value cannot be written.

    Example:
      >>> format_header({"energy": -31.7, "pbc": np.array([True, False, False]), "name": "two words"})
      'energy=-31.7 pbc="T F F" name="two words"'
    """
    return " ".join(f"{_format_key(key)}={_format_value(value, key)}" for key, value in info.items())


def _format_key(key: str) -> str:
    if not isinstance(key, str) or not _BARE.fullmatch(key):
        raise ValueError(f"{key!r}: not a key of an extended XYZ header; use letters, digits and _ . : + / -")
    return key


def _format_value(value: Any, key: str) -> str:
    if isinstance(value, (bool, int, float, np.generic, np.ndarray)):
        array = np.asarray(value)
        if array.dtype.kind in "bif" and (array.ndim == 0 or (array.ndim == 1 and array.size > 1)):
            words = " ".join(_word(item) for item in np.atleast_1d(array).tolist())
            return words if array.ndim == 0 else f'"{words}"'
        # A vector of one number would come back as a number; it goes through JSON like lists and matrices.
        value = array.tolist()
    if isinstance(value, str) and value == value.strip() and _interpret_or_none(value) == value:
        return value if _BARE.fullmatch(value) else _quote(value)
    try:
        return _quote(f"_JSON {json.dumps(value)}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: {value!r} cannot be written to an extended XYZ header ({error})") from error


def _word(value: bool | int | float) -> str:
    return ("T" if value else "F") if isinstance(value, bool) else repr(value)


def _interpret_or_none(text: str) -> Any:
    if text.startswith("_JSON") or "\n" in text or "\r" in text:
        return None
    value = _interpret(text, "")
    return value if isinstance(value, str) else None


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
