"""Every public name is documented for a stranger: a docstring, shapes, and arguments that exist."""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import numpy as np
import pytest

import equivariant_jax

MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(equivariant_jax.__path__, "equivariant_jax.")
    if not m.name.rsplit(".", 1)[1].startswith("_")
)
# How shapes are written: `[..., n, 3]`, or in words where there is none to give.
SHAPE = re.compile(r"\[[^\]]*\]|any shape|pytree", re.I)


def public(module):
    return [(name, getattr(module, name)) for name in getattr(module, "__all__", ())]


@pytest.mark.parametrize("name", MODULES)
def test_module(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module), f"{name} has no docstring"
    assert hasattr(module, "__all__"), f"{name} does not say what is public"
    missing = [n for n in module.__all__ if not hasattr(module, n)]
    assert not missing, f"{name}.__all__ names {missing}, which do not exist"


def problems(name, obj):
    """What is wrong with the documentation of one public object."""
    doc = inspect.getdoc(obj) or ""
    if not doc or (dataclasses.is_dataclass(obj) and doc.startswith(f"{obj.__name__}(")):
        return [f"{name} has no docstring"]
    found = []
    if inspect.isfunction(obj):
        signature = inspect.signature(obj)
        arguments = [p for p in signature.parameters if p not in ("self", "cls")]
        if arguments:
            section = doc.split("Args:", 1)[1].split("\n\n")[0] if "Args:" in doc else ""
            found += [
                f"{name} does not document its argument {p}"
                for p in arguments
                if not re.search(
                    rf"^\s*\*{{0,2}}{re.escape(p)}(, |:| \()|, \*{{0,2}}{re.escape(p)}(,|:)", section, re.M
                )
            ]
        returns = signature.return_annotation
        if returns not in (None, "None", inspect.Signature.empty) and "Return" not in doc and "Yield" not in doc:
            found.append(f"{name} does not say what it returns")
        arrays = any(word in str(signature) for word in ("Array", "ndarray"))
        if arrays and not SHAPE.search(doc):
            found.append(f"{name} gives no shape")
        if len(arguments) == 1 and "Args:" not in doc and (not arrays or SHAPE.search(doc)):
            found = []  # one argument and one sentence that says all: sections would only repeat it
    return found


@pytest.mark.parametrize("name", MODULES)
def test_public_names(name):
    module = importlib.import_module(name)
    found = []
    for attribute, obj in public(module):
        if inspect.isfunction(obj) or inspect.isclass(obj):
            found += problems(f"{name}.{attribute}", obj)
            if inspect.isclass(obj) and obj.__module__.startswith("equivariant_jax"):
                for method, value in vars(obj).items():
                    if inspect.isfunction(value) and not method.startswith("_") and not inspect.getdoc(value):
                        found.append(f"{name}.{attribute}.{method} has no docstring")
    assert not found, "\n".join(found)


def test_the_check_sees_what_is_missing():
    def f(x, y):
        """Adds.

        Args:
          x: array `[n]`.

        Returns:
          The sum.
        """

    assert problems("f", f) == ["f does not document its argument y"]

    def g(x: np.ndarray, y: int) -> int:
        """Does things to an array."""

    assert len(problems("g", g)) == 4
    assert problems("h", lambda: None) == ["h has no docstring"]
