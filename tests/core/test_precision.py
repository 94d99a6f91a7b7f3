"""Policies cast floating leaves and nothing else."""

import jax
import jax.numpy as jnp
import pytest

from equivariant_jax.core.precision import Policy


def test_casts_floating_leaves_only(key):
    policy = Policy("float32", "bfloat16", "float16")
    tree = {"w": jnp.ones(2), "n": jnp.ones(2, jnp.int32), "k": key, "c": jnp.ones(2, jnp.complex64), "none": None}
    out = policy.cast_to_compute(tree)
    assert out["w"].dtype == jnp.bfloat16
    assert policy.cast_to_output(tree)["w"].dtype == jnp.float16
    assert policy.cast_to_param(out)["w"].dtype == jnp.float32
    assert out["n"].dtype == jnp.int32
    assert out["c"].dtype == jnp.complex64
    assert jax.dtypes.issubdtype(out["k"].dtype, jax.dtypes.prng_key)


@pytest.mark.parametrize("name", ["int32", "floot32"])
def test_refuses_other_dtypes(name):
    with pytest.raises(ValueError, match="floating dtype"):
        Policy(compute_dtype=name)
