"""The table behind method="auto"."""

from typing import get_args

import jax.numpy as jnp
import pytest

from equivariant_jax.euclidean import method_choice
from equivariant_jax.euclidean.method_choice import (
    BracketMethod,
    ProductMethod,
    choose_bracket_method,
    choose_method,
    read_table,
)


def test_the_shipped_table_is_well_formed():
    table = read_table()
    assert "cpu" in table
    for backend in table.values():
        for kind, methods in (("product", get_args(ProductMethod)), ("bracket", get_args(BracketMethod))):
            assert backend[kind]
            for entry in backend[kind]:
                assert entry["degree"] > 0
                assert entry["rows"] > 0
                assert min(entry["relative"].values()) == 1.0
                assert set(entry["relative"]) <= set(methods) - {"auto"}


def test_takes_the_fastest_of_the_nearest_entry(monkeypatch):
    entries = [
        {"degree": 8, "rows": 16, "relative": {"sparse": 1.0, "grid": 1.2}},
        {"degree": 8, "rows": 4096, "relative": {"grid": 1.0, "sparse": 3.0}},
        {"degree": 64, "rows": 256, "relative": {"octant": 1.0}},
    ]
    monkeypatch.setattr(method_choice, "read_table", lambda: {"cpu": {"product": entries, "bracket": entries[1:]}})
    method_choice._lookup.cache_clear()
    try:
        assert choose_method(2, 2, 4, 1, jnp.float32) == "sparse"
        assert choose_method(2, 2, 4, 10_000, jnp.float32) == "grid"
        assert choose_method(16, 16, 24, 16, jnp.float32) == "octant"
        assert choose_method(40, 40, 80, 16, jnp.float32) == "separable"
        assert choose_method(0, 0, 0, 1, jnp.float32) == "sparse"
        assert choose_bracket_method(2, 2, 3, 1, jnp.float32) == "grid"
    finally:
        method_choice._lookup.cache_clear()


@pytest.mark.parametrize("backend", ["tpu", "METAL"])
def test_an_unmeasured_backend_gets_the_documented_rule(monkeypatch, backend):
    monkeypatch.setattr(method_choice.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(method_choice, "read_table", dict)
    method_choice._lookup.cache_clear()
    try:
        assert choose_method(4, 4, 8, 1000, jnp.float32) == "grid"
        assert choose_method(40, 40, 80, 1000, jnp.float32) == "separable"
    finally:
        method_choice._lookup.cache_clear()
