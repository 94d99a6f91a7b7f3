"""Every representation is a homomorphism that moves things; Wigner matrices agree with e3nn-jax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core import groups
from equivariant_jax.core import representations as rep

CASES = [
    (groups.Orthogonal(3), rep.Vector(-1), (5, 3)),
    (groups.Affine(2), rep.Vector(0), (2, 4)),
    (groups.Affine(2), rep.Point(0), (2, 4)),
    (groups.Euclidean(3), rep.Point(), (4, 3)),
    (groups.Symmetric(5), rep.Permuted((-2,)), (5, 3)),
    (groups.Symmetric(5), rep.Permuted((0, 1)), (5, 5, 2)),
    (groups.TorusShifts((6, 4)), rep.Shifted((0, 1)), (6, 4, 2)),
    (groups.TorusShifts((3,)), rep.Shifted((0,), (2,)), (6, 2)),
    (groups.Cyclic(6), rep.Shifted((1,)), (2, 6)),
    (groups.Cyclic(4), rep.QuarterTurns((0, 1)), (5, 5, 2)),
    (groups.Dihedral(4), rep.QuarterTurns((0, 1)), (5, 5, 2)),
    (groups.Dihedral(5), rep.Regular(groups.Dihedral(5)), (3, 10)),
    (groups.Cyclic(5), rep.Regular(groups.Cyclic(5), 0), (5, 2)),
    (groups.Orthogonal(3), rep.Irreps(4), (3, 25)),
    (groups.Orthogonal(3), rep.Irreps(((1, 1), (0, -1), (2, 1), (3, 1))), (16,)),
    (groups.Orthogonal(3), rep.TensorProduct(rep.Vector(-1), rep.Irreps(1, axis=-2)), (4, 3)),
    (groups.SpecialOrthogonal(3), rep.DirectSum(((rep.Vector(), 3), (rep.Trivial(), 2))), (5,)),
    (groups.Product((groups.Symmetric(4), groups.Euclidean(3))), rep.Joint((rep.Permuted(), rep.Point())), (4, 3)),
]


@pytest.mark.parametrize(("group", "action", "shape"), CASES, ids=lambda v: str(v)[:60])
def test_homomorphism(group, action, shape, key):
    kg, kh, kx = jax.random.split(key, 3)
    g, h = group.sample(kg), group.sample(kh)
    x = jax.random.normal(kx, shape)
    act = jax.jit(action)
    together, in_turn = act(group.compose(g, h), x), act(g, act(h, x))
    assert together.shape == x.shape
    assert together.dtype == x.dtype
    np.testing.assert_allclose(together, in_turn, atol=3e-5)
    np.testing.assert_allclose(act(group.identity(), x), x, atol=1e-5)
    moved = [float(jnp.abs(act(group.sample(k), x) - x).max()) for k in jax.random.split(key, 6)]
    assert max(moved) > 0.1
    # Linear representations: additive (affine points are not).
    if not any(isinstance(a, rep.Point) for a in [action, *getattr(action, "parts", ())]):
        np.testing.assert_allclose(act(g, x + 2 * x[::-1]), act(g, x) + 2 * act(g, x[::-1]), atol=3e-5)


def test_permuted_moves_entry_i_to_place_g_of_i():
    g = jnp.array([2, 0, 1])
    np.testing.assert_array_equal(rep.Permuted((0,))(g, jnp.array([10, 11, 12])), [11, 12, 10])


def test_wigner_matrices_against_e3nn(key, x64):
    import e3nn_jax as e3nn

    r = groups.SpecialOrthogonal(3, "float64").sample(key)
    blocks = jax.jit(lambda r: rep.wigner_d(r, 5))(r)
    theirs = jax.jit(lambda r: [e3nn.Irrep(l, 1).D_from_matrix(r) for l in range(6)])(r)
    for ours, want in zip(blocks, theirs, strict=True):
        np.testing.assert_allclose(ours, want, atol=2e-14)


def test_wigner_matrices_are_orthogonal_at_high_degree_and_differentiable(x64):
    group = groups.SpecialOrthogonal(3, "float64")
    v = jnp.array([0.0, np.pi, 0.0])  # Euler angles and axis-angle are singular here
    block = jax.jit(lambda v: rep.wigner_d(group.exp(v), 16)[16])(v)
    np.testing.assert_allclose(block @ block.T, np.eye(33), atol=1e-12)
    slope = jax.jacfwd(lambda v: rep.wigner_d(group.exp(v), 3)[3])(v)
    step = 1e-6 * jnp.array([1.0, 0.0, 0.0])
    numeric = (rep.wigner_d(group.exp(v + step), 3)[3] - rep.wigner_d(group.exp(v - step), 3)[3]) / 2e-6
    np.testing.assert_allclose(slope[..., 0], numeric, atol=1e-8)


def test_inversion_follows_parity():
    x = jnp.arange(1.0, 5.0)
    np.testing.assert_allclose(rep.Irreps(((0, -1), (1, 1)))(-jnp.eye(3), x), [-1, 2, 3, 4], atol=1e-6)


def test_half_precision_is_kept():
    x = jnp.ones((2, 3), jnp.bfloat16)
    assert rep.Vector()(jnp.eye(3), x).dtype == jnp.bfloat16
    assert rep.Irreps(1)(jnp.eye(3), jnp.ones(4, jnp.bfloat16)).dtype == jnp.bfloat16


def test_wrong_input():
    with pytest.raises(ValueError, match="expected length 9"):
        rep.Irreps(2)(jnp.eye(3), jnp.ones(8))
    with pytest.raises(ValueError, match="expected length 5"):
        rep.DirectSum(((rep.Vector(), 3), (rep.Trivial(), 2)))(jnp.eye(3), jnp.ones(4))
    with pytest.raises(ValueError, match="3, 3"):
        rep.wigner_d(jnp.eye(2), 1)
