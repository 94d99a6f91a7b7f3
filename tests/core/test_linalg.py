"""Values equal the textbook ones; gradients equal finite differences and stay finite where theirs do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from equivariant_jax.core import groups, linalg


def finite(f, *args):
    return all(
        bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(jax.grad(f, argnums=tuple(range(len(args))))(*args))
    )


def test_norms_at_zero():
    zero = jnp.zeros((2, 3))
    assert finite(lambda x: linalg.safe_norm(x).sum(), zero)
    assert finite(lambda x: linalg.safe_normalize(x).sum(), zero)
    assert float(linalg.safe_sqrt(jnp.array(-1.0))) == 0.0
    hessian = jax.hessian(lambda x: linalg.safe_norm(x, axis=None))(zero)
    assert jnp.isfinite(hessian).all()
    x = jnp.array([[3.0, 0.0, 4.0]])
    np.testing.assert_allclose(linalg.safe_norm(x), [5.0])
    np.testing.assert_allclose(linalg.safe_norm(x, axis=(0, 1), keepdims=True), [[5.0]])
    np.testing.assert_allclose(jax.grad(lambda x: linalg.safe_norm(x).sum())(x), x / 5)


def test_eigh(key, x64):
    a = jax.random.normal(key, (2, 4, 4), jnp.float64)
    symmetric = 0.5 * (a + jnp.swapaxes(a, 1, 2))
    w, v = linalg.safe_eigh(a)
    np.testing.assert_allclose(v * w[:, None, :] @ jnp.swapaxes(v, 1, 2), symmetric, atol=1e-12)

    def f(a):
        w, v = linalg.safe_eigh(a)
        return jnp.sum(w**3) + jnp.sum(v**4)

    check_grads(jax.jit(f), (a,), 2, rtol=1e-4)
    # Well separated spectra: the broadened derivative is the exact one to rounding.
    exact = jax.grad(lambda s: jnp.sum(jnp.linalg.eigh(s)[1] ** 4))(symmetric)
    ours = jax.grad(lambda s: jnp.sum(linalg.safe_eigh(s)[1] ** 4))(symmetric)
    np.testing.assert_allclose(ours, exact, rtol=1e-10, atol=1e-12)
    assert not finite(lambda s: jnp.sum(jnp.linalg.eigh(s)[1] ** 4), jnp.eye(3))  # what we guard against
    for degenerate in (jnp.eye(3), jnp.zeros((3, 3)), jnp.diag(jnp.array([1.0, 1.0, 2.0]))):
        assert finite(f, degenerate)


def small_matrices(kind, n, rng):
    x = rng.normal(size=(500, n, n))
    a = x + x.swapaxes(1, 2)
    turn = np.linalg.qr(x)[0]
    if kind == "graded":
        scale = 10.0 ** rng.uniform(-6, 6, size=(500, n))
        a = a * scale[:, :, None] * scale[:, None, :]
    if kind == "near":
        values = 1 + rng.normal(size=(500, n)) * 10.0 ** rng.uniform(-16, -6, size=(500, 1))
        a = np.einsum("sij,sj,skj->sik", turn, values, turn)
    if kind == "equal":
        a = np.eye(n) * rng.integers(-2, 3, size=(500, n))[:, None, :]
    if kind == "rank one":
        a = x[:, :, :1] * x[:, None, :, 0]
    return a * {"huge": 1e30, "tiny": 1e-30}.get(kind, 1.0)


@pytest.mark.parametrize("kind", ["random", "graded", "near", "equal", "rank one", "huge", "tiny"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_eigh_of_small_matrices(kind, n, x64):
    """Against LAPACK's eigenvalues; `a v = v w` and orthogonality, to a few units of rounding."""
    a = small_matrices(kind, n, np.random.default_rng(n))
    for dtype, bound in ((np.float32, 1e-6), (np.float64, 4e-15)):
        low = a.astype(dtype)
        low = 0.5 * (low + low.swapaxes(1, 2))
        w, v = (np.asarray(leaf) for leaf in jax.jit(linalg.safe_eigh)(low))
        assert w.dtype == v.dtype == dtype
        assert (np.diff(w, axis=-1) >= 0).all()
        exact = low.astype(np.float64)
        values, size = np.linalg.eigvalsh(exact), np.abs(exact).max(axis=(1, 2)) + 1e-300
        assert (np.abs(w - values).max(axis=1) / size).max() < bound
        assert (np.abs(exact @ v - v * w[:, None]).max(axis=(1, 2)) / size).max() < bound
        assert np.abs(v.swapaxes(1, 2) @ v - np.eye(n)).max() < bound


def test_eigh_of_small_matrices_needs_its_sweeps(x64, monkeypatch):
    a = jnp.asarray(small_matrices("random", 3, np.random.default_rng(0)))

    def residual():
        w, v = linalg._jacobi(a)
        return float(jnp.abs(a @ v - v * w[:, None]).max())

    assert residual() < 1e-13
    monkeypatch.setitem(linalg._SWEEPS, 3, 3)
    assert residual() > 1e-12


def test_eigh_of_small_matrices_shards():
    """The loop's state must vary over the same devices before and after each sweep."""
    a = jax.random.normal(jax.random.key(0), (8, 3, 3))
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("batch",), auto, devices=jax.devices()[:2])
    run = jax.shard_map(linalg.safe_eigh, mesh=mesh, in_specs=jax.P("batch"), out_specs=jax.P("batch"))
    for ours, whole in zip(jax.jit(run)(a), linalg.safe_eigh(a), strict=True):
        np.testing.assert_allclose(ours, whole, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
def test_svd(shape, key, x64):
    a = jax.random.normal(key, shape, jnp.float64)
    u, s, vt = linalg.safe_svd(a)
    np.testing.assert_allclose(u * s[None] @ vt, a, atol=1e-12)

    def f(a):
        u, s, vt = linalg.safe_svd(a)
        return jnp.sum(s**3) + jnp.sum(u**4) + jnp.sum(vt**4)

    check_grads(jax.jit(f), (a,), 2 if shape == (4, 4) else 1, rtol=1e-4)
    assert finite(f, jnp.eye(*shape))
    assert finite(f, jnp.zeros(shape))


@pytest.mark.parametrize("special", [False, True])
def test_polar(special, key, x64):
    for a in jax.random.normal(key, (4, 3, 3), jnp.float64):
        q, p = linalg.polar(a, special=special)
        np.testing.assert_allclose(q @ p, a, atol=1e-12)
        np.testing.assert_allclose(q @ q.T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(p, p.T, atol=1e-12)
        if special:
            np.testing.assert_allclose(jnp.linalg.det(q), 1.0, atol=1e-12)
        else:
            assert np.linalg.eigvalsh(p).min() > -1e-12

    def f(a):
        q, p = linalg.polar(a, special=special)
        return jnp.sum(q**3) + jnp.sum(p**3)

    check_grads(jax.jit(f), (a,), 2, rtol=1e-4)
    assert finite(f, jnp.zeros((3, 3)))
    # Equal singular values are no singularity: the exact derivative at the identity is the skew part.
    slope = jax.jacfwd(lambda a: linalg.polar(a, special=special)[0])(jnp.eye(3))
    da = np.arange(9.0).reshape(3, 3)
    np.testing.assert_allclose(jnp.tensordot(slope, da, axes=2), 0.5 * (da - da.T), atol=1e-12)


def test_polar_is_the_nearest_rotation(key, x64):
    a = jax.random.normal(key, (3, 3), jnp.float64)
    q, _ = linalg.polar(a, special=True)
    others = jax.vmap(groups.SpecialOrthogonal(3, "float64").sample)(jax.random.split(key, 2000))
    assert jnp.linalg.norm(a - q) <= jnp.linalg.norm(a[None] - others, axis=(1, 2)).min()


def test_dtype_is_kept():
    for x in linalg.safe_eigh(jnp.eye(2)):
        assert x.dtype == jnp.float32


def test_errors():
    for f in (linalg.safe_eigh, linalg.polar):
        with pytest.raises(ValueError, match="n, n"):
            f(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="m, n"):
        linalg.safe_svd(jnp.ones(3))
    with pytest.raises(ValueError, match="floating"):
        linalg.safe_eigh(jnp.eye(2, dtype=jnp.int32))


def products(jaxpr):
    """Precision of every matrix product of a program, those of its inner programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def test_products_are_in_full_precision_on_every_device():
    """The default of a TPU is bfloat16, which a rotation's derivative does not survive."""
    a = jnp.diag(jnp.arange(1.0, 4.0))
    highest = (jax.lax.Precision.HIGHEST,) * 2
    for function in (linalg.safe_eigh, linalg.safe_svd, lambda a: linalg.polar(a, special=True)):
        found = [*products(jax.make_jaxpr(lambda x, f=function: jax.jvp(f, (x,), (x,)))(a).jaxpr)]
        assert found
        assert set(found) == {highest}
