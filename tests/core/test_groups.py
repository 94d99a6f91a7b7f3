"""Group axioms for every group, and the maps between a Lie group and its algebra."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core import groups

GROUPS = [
    groups.Symmetric(6),
    groups.Cyclic(7),
    groups.Dihedral(5),
    groups.TorusShifts((4, 6)),
    groups.Orthogonal(3),
    groups.Orthogonal(4),
    groups.SpecialOrthogonal(2),
    groups.SpecialOrthogonal(3),
    groups.SpecialOrthogonal(5),
    groups.GeneralLinear(2),
    groups.SpecialLinear(3),
    groups.Affine(2),
    groups.Euclidean(3),
    groups.SpecialEuclidean(3),
    groups.Product((groups.Symmetric(4), groups.Euclidean(2))),
]


def close(a, b, tolerance=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_axioms(group, key):
    g, h, k = (group.sample(s) for s in jax.random.split(key, 3))
    assert isinstance(group, groups.Group)
    assert hash(group) == hash(type(group)(**vars(group)))
    close(group.compose(group.compose(g, h), k), group.compose(g, group.compose(h, k)))
    close(group.compose(g, group.identity()), g)
    close(group.compose(group.identity(), g), g)
    close(group.compose(g, group.inverse(g)), group.identity())
    close(group.compose(group.inverse(g), g), group.identity())
    # Inverses reverse the order: a compose that swapped its arguments would pass all lines above.
    close(group.inverse(group.compose(g, h)), group.compose(group.inverse(h), group.inverse(g)))


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_elements_pass_through_jit_and_vmap(group, key):
    keys = jax.random.split(key, 4)
    batch = jax.jit(jax.vmap(group.sample))(keys)
    first = jax.tree.map(lambda x: x[0], batch)
    close(first, group.sample(keys[0]))
    products = jax.vmap(group.compose)(batch, jax.vmap(group.inverse)(batch))
    close(jax.tree.map(lambda x: x[2], products), group.identity())


@pytest.mark.parametrize("group", [groups.Cyclic(5), groups.Dihedral(4), groups.Dihedral(1)], ids=str)
def test_finite_groups_enumerate_themselves(group):
    elements = list(group.elements())
    assert len(elements) == group.order
    assert [int(group.index(g)) for g in elements] == list(range(group.order))
    table = np.array([[int(group.index(group.compose(g, h))) for h in elements] for g in elements])
    # A Latin square: each row and each column holds every element once.
    for line in itertools.chain(table, table.T):
        assert sorted(line) == list(range(group.order))


def test_dihedral_is_a_group_of_matrices():
    group, angle = groups.Dihedral(5), 2 * np.pi / 5

    def matrix(g):
        k, reflected = int(g[0]), int(g[1])
        c, s = np.cos(k * angle), np.sin(k * angle)
        return np.array([[c, -s], [s, c]]) @ np.diag([1.0, -1.0 if reflected else 1.0])

    for g, h in itertools.product(group.elements(), repeat=2):
        np.testing.assert_allclose(matrix(group.compose(g, h)), matrix(g) @ matrix(h), atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_haar_moments(n, key):
    """First and second moments of Haar measure on SO(n) and O(n): E g = 0, E g_ij g_kl = delta_ik delta_jl / n."""
    m = 4096
    for group in (groups.SpecialOrthogonal(n), groups.Orthogonal(n)):
        g = jax.vmap(group.sample)(jax.random.split(key, m)).reshape(m, -1)
        assert np.abs(g.mean(0)).max() < 5 / np.sqrt(m)
        if n > 2 or type(group) is groups.Orthogonal:
            covariance = g.T @ g / m
            assert np.abs(covariance - np.eye(n * n) / n).max() < 5 / np.sqrt(m)
    determinants = jnp.linalg.det(jax.vmap(groups.SpecialOrthogonal(n).sample)(jax.random.split(key, 64)))
    np.testing.assert_allclose(determinants, 1.0, atol=1e-5)
    signs = jnp.sign(jnp.linalg.det(jax.vmap(groups.Orthogonal(n).sample)(jax.random.split(key, 64))))
    assert set(np.unique(signs)) == {-1.0, 1.0}


def test_determinants_of_linear_groups(key):
    keys = jax.random.split(key, 32)
    general = jnp.linalg.det(jax.vmap(groups.GeneralLinear(3).sample)(keys))
    assert (general > 0).all()
    assert np.std(general) > 0.1
    special = jnp.linalg.det(jax.vmap(groups.SpecialLinear(3).sample)(keys))
    np.testing.assert_allclose(special, 1.0, atol=2e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-3, 1.0, 3.1])
def test_rotation_log_inverts_exp(scale, x64):
    for n in (2, 3):
        group = groups.SpecialOrthogonal(n, "float64")
        v = jnp.asarray([1.0, -2.0, 0.5][: group.dim], jnp.float64)
        v = scale * v / jnp.linalg.norm(v)
        np.testing.assert_allclose(group.log(group.exp(v)), v, rtol=1e-7, atol=1e-12)


def test_rotation_exp_is_rodrigues(key, x64):
    v = jax.random.normal(key, (3,), jnp.float64)
    angle = jnp.linalg.norm(v)
    k = np.cross(np.eye(3), np.asarray(v / angle)).T
    k = -k if np.abs(k @ np.array([1.0, 0, 0]) - np.cross(v / angle, [1.0, 0, 0])).max() > 1e-9 else k
    want = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
    np.testing.assert_allclose(groups.SpecialOrthogonal(3).exp(v), want, atol=1e-12)


def test_screw_motion(x64):
    """A rotation by angle t about z with unit velocity along x moves on a circle."""
    t = 0.7
    g = groups.SpecialEuclidean(3, "float64").exp(jnp.array([0.0, 0.0, t, t, 0.0, 0.0]))
    np.testing.assert_allclose(g.translation, [np.sin(t), 1 - np.cos(t), 0.0], atol=1e-12)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("scale", [0.0, 1e-5, 1.0])
def test_motion_log_inverts_exp(n, scale, x64):
    group = groups.SpecialEuclidean(n, "float64")
    v = scale * jnp.asarray([0.7, -1.0, 0.5, 2.0, 3.0, -4.0][: n * (n - 1) // 2 + n], jnp.float64)
    np.testing.assert_allclose(group.log(group.exp(v)), v, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: groups.Symmetric(0),
        lambda: groups.Cyclic(2.5),
        lambda: groups.TorusShifts(()),
        lambda: groups.SpecialOrthogonal(3).exp(jnp.zeros(2)),
        lambda: groups.SpecialOrthogonal(4).log(jnp.eye(4)),
        lambda: groups.SpecialEuclidean(2).exp(jnp.zeros(2)),
    ],
)
def test_wrong_input(make):
    with pytest.raises(ValueError, match=r"got|closed form"):
        make()
