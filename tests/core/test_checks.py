"""The public checks pass what is right and refuse what is wrong, also what would pass for the wrong reason."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core import checks, groups
from equivariant_jax.core import representations as rep

O3 = groups.Orthogonal(3)


@pytest.fixture
def cloud():
    return jax.random.normal(jax.random.key(7), (6, 3))


def test_error_is_measured_in_units_of_the_output(cloud, key):
    """f(x) = x + eps e_z breaks O(3) by a known amount: the report says how much, at any scale of the output."""
    for scale in (1e-3, 1.0, 1e4):

        def f(x, scale=scale):
            return scale * (x + 0.01 * jnp.array([[0.0, 0.0, 1.0]]))

        report = checks.equivariance_error(f, O3, rep.Vector(), rep.Vector(), key, (cloud,))
        bound = 0.02 / float(jnp.abs(cloud).max())
        assert 0.1 * bound < report.error < 1.01 * bound
        assert report.rounding < 1e-5


def test_rounding_level_follows_conditioning_and_dtype(cloud, key):
    def steep(x):
        return jnp.sin(1e3 * jnp.sum(x**2, -1))

    well = checks.equivariance_error(lambda x: jnp.sum(x**2, -1), O3, rep.Vector(), rep.Trivial(), key, (cloud,))
    ill = checks.assert_invariant(steep, O3, rep.Vector(), key, (cloud,))
    assert ill.rounding > 100 * well.rounding
    half = checks.assert_invariant(lambda x: jnp.sum(x**2, -1), O3, rep.Vector(), key, (cloud.astype(jnp.bfloat16),))
    assert half.rounding > 1e3 * well.rounding


def test_failure_names_the_worst_element_and_the_leaf(cloud, key):
    def f(x):
        return {"good": jnp.sum(x**2), "bad": x[:, 2].sum()}

    with pytest.raises(AssertionError, match=r"output\['bad'\]") as failure:
        checks.assert_invariant(f, O3, rep.Vector(), key, (cloud,))
    text = str(failure.value)
    assert "Orthogonal(n=3" in text
    worst = checks.equivariance_error(f, O3, rep.Vector(), rep.Trivial(), key, (cloud,))
    assert str(worst.element) in text
    g = worst.element
    turned = rep.Vector()(g, cloud)
    gap = abs(float(f(turned)["bad"] - f(cloud)["bad"])) / max(
        abs(float(f(turned)["bad"])), abs(float(f(cloud)["bad"]))
    )
    np.testing.assert_allclose(gap, worst.error, rtol=1e-5)


def test_several_inputs_and_pytrees(cloud, key):
    def f(state, mass):
        return {"r": state["r"] * mass[:, None], "energy": jnp.sum(mass[:, None] * state["v"] ** 2)}

    inputs = ({"r": cloud, "v": cloud[::-1]}, jnp.arange(1.0, 7.0))
    group = groups.Product((groups.Symmetric(6), O3))
    move = rep.Joint((rep.Permuted((0,)), rep.Vector()))
    act_out = {"r": move, "energy": rep.Trivial()}
    checks.assert_equivariant(f, group, (move, rep.Joint((rep.Permuted((0,)), rep.Trivial()))), act_out, key, inputs)
    with pytest.raises(AssertionError, match="not equivariant"):
        checks.assert_equivariant(f, group, (move, rep.Trivial()), act_out, key, inputs)


def test_refuses_what_passes_for_the_wrong_reason(cloud, key):
    with pytest.raises(AssertionError, match="no sampled element"):
        checks.assert_invariant(lambda x: x.sum(), O3, rep.Trivial(), key, (cloud,))
    with pytest.raises(AssertionError, match="no sampled element"):
        checks.assert_invariant(lambda x: x[0, 2], O3, rep.Vector(), key, (jnp.zeros((2, 3)),))
    with pytest.raises(AssertionError, match="does not change"):
        checks.assert_invariant(lambda x: jnp.ones(3), O3, rep.Vector(), key, (cloud,))
    with pytest.raises(AssertionError, match="not finite"):
        checks.assert_invariant(lambda x: jnp.sqrt(x[:, 0]), O3, rep.Vector(), key, (cloud,))
    with pytest.raises(ValueError, match="input representations"):
        checks.assert_invariant(lambda x, y: x, O3, (rep.Vector(),), key, (cloud, cloud))


def test_integer_outputs_compare_exactly(cloud, key):
    group, act = groups.Symmetric(6), rep.Permuted((0,))
    checks.assert_equivariant(lambda x: jnp.argsort(jnp.argsort(x[:, 0])), group, act, act, key, (cloud,))
    with pytest.raises(AssertionError, match="not equivariant"):
        checks.assert_equivariant(lambda x: jnp.argsort(x[:, 0]), group, act, act, key, (cloud,))


def test_padding_leak_in_value_gradient_and_nan(key):
    x = jax.random.normal(key, (5, 2))
    mask = jnp.array([True, True, True, False, False])
    padding = (~mask, None)

    def good(x, mask):
        return jnp.sum(jnp.where(mask[:, None], x, 0.0) ** 2, axis=0)

    def leaks(x, mask):
        return jnp.max(x, axis=0)

    def leaks_in_gradient_only(x, mask):
        hidden = jnp.where(mask[:, None], x, 0.0)
        return jnp.sum(hidden**2, axis=0) + (x - jax.lax.stop_gradient(x)).sum()

    def nan_in_gradient(x, mask):
        return jnp.sum(jnp.where(mask[:, None], jnp.sqrt(jnp.abs(x)), 0.0))

    checks.assert_padding_invariant(good, (x, mask), padding, key)
    with pytest.raises(AssertionError, match="output changed"):
        checks.assert_padding_invariant(leaks, (x, mask), padding, key)
    with pytest.raises(AssertionError, match="gradient with respect to input 0"):
        checks.assert_padding_invariant(leaks_in_gradient_only, (x, mask), padding, key)
    with pytest.raises(AssertionError, match="not finite"):
        checks.assert_padding_invariant(nan_in_gradient, (x, mask), padding, key)
    # Outputs at padded rows may be anything once they are declared padding.
    per_row = (lambda x, mask: x * 2.0), (x, mask), padding, key
    checks.assert_padding_invariant(*per_row, output_padding=~mask)
    with pytest.raises(AssertionError, match="output changed"):
        checks.assert_padding_invariant(*per_row)
    with pytest.raises(ValueError, match="marks no entry"):
        checks.assert_padding_invariant(good, (x, mask), (mask & ~mask, None), key)


def test_one_trace_names_the_argument():
    def f(x, y):
        return x * y["scale"]

    a = (jnp.ones(3), {"scale": jnp.ones(())})
    checks.assert_one_trace(f, a, (jnp.zeros(3), {"scale": jnp.zeros(())}))
    with pytest.raises(AssertionError, match=r"\[1\]\['scale'\] was float32\[\] in call 0 and weak float32\[\]"):
        checks.assert_one_trace(f, a, (jnp.zeros(3), {"scale": 1.0}))
    with pytest.raises(AssertionError, match="another tree structure"):
        checks.assert_one_trace(lambda x: x, (jnp.zeros(2),), ((jnp.zeros(2),),))
    with pytest.raises(ValueError, match="two tuples"):
        checks.assert_one_trace(f, a)
