import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.nn.mlp import MLP, mlp_apply, mlp_init, unit_silu


def test_equals_plain_numpy(key):
    params = mlp_init(key, (3, 5, 2))
    params[0]["bias"] = jnp.arange(5.0)
    x = jax.random.normal(jax.random.fold_in(key, 1), (4, 3))
    hidden = np.asarray(x) @ np.asarray(params[0]["kernel"]) + np.arange(5.0)
    hidden = np.asarray(unit_silu(jnp.asarray(hidden)))
    np.testing.assert_allclose(mlp_apply(params, x), hidden @ np.asarray(params[1]["kernel"]), atol=1e-5)


def test_activations_keep_their_size_over_depth(key):
    params = mlp_init(key, (64, *[256] * 6, 64), use_bias=False)
    x = jax.random.normal(jax.random.fold_in(key, 1), (500, 64))
    assert 0.5 < float(jnp.std(mlp_apply(params, x))) < 2.0
    # Without the rescaling six layers lose a factor of 1.68 each.
    assert float(jnp.std(mlp_apply(params, x, activation=jax.nn.silu))) < 0.1


def test_without_bias_zero_stays_zero(key):
    params = mlp_init(key, (3, 8, 2), use_bias=False)
    assert (mlp_apply(params, jnp.zeros((2, 3))) == 0).all()
    assert "bias" not in params[0]


def test_linen_module_and_dtype(key):
    x = jnp.ones((2, 3))
    variables = MLP((8, 2)).init(key, x)
    np.testing.assert_allclose(MLP((8, 2)).apply(variables, x), mlp_apply(variables["params"]["layers"], x))
    assert mlp_init(key, (3, 2), dtype=jnp.bfloat16)[0]["kernel"].dtype == jnp.bfloat16


def test_bad_input_is_named(key):
    with pytest.raises(ValueError, match=r"\(3,\)"):
        mlp_init(key, (3,))
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        mlp_apply(mlp_init(key, (3, 2)), jnp.ones((2, 4)))
