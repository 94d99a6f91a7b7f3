"""The backend sentinel: patterns that some XLA builds got wrong, against NumPy.

If a test here fails, the installed jaxlib computes wrong numbers on this device: do not trust any result; install
another version. Each case names the fault it looks for.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

BAD = "the installed jaxlib {} gives wrong results on {} for {}; install another jax version (see pyproject.toml)"


def judge(got, want, tolerance, pattern):
    import jaxlib

    gap = np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()
    assert gap <= tolerance, BAD.format(jaxlib.__version__, jax.default_backend(), pattern) + f": error {gap:.1e}"


@pytest.mark.parametrize("rows", [1000, 32_769, 70_000])
@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_matvec_then_reduce(rows, columns):
    """jax-ml/jax#39103: wrong sums on CPU for vmap(matvec, then reduce) on three columns and > 32,768 rows."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(rows, columns)).astype(np.float32), rng.normal(size=(columns, columns)).astype(np.float32)
    got = jax.jit(lambda x, w: jnp.sum(jax.vmap(lambda v: w @ v)(x) ** 2, axis=0))(x, w)
    want = ((x.astype(np.float64) @ w.T.astype(np.float64)) ** 2).sum(0)
    judge(got, want, 1e-4, "vmap(matvec) followed by a sum")
    got = jax.jit(lambda x, w: jax.vmap(lambda v: (w @ v).sum())(x))(x, w)
    judge(got, (x.astype(np.float64) @ w.T.astype(np.float64)).sum(1), 1e-5, "vmap(matvec, then reduce)")


@pytest.mark.parametrize("axes", [(0, 2, 4), (1, 3, 5, 6), (6,), (0, 1, 2, 3, 4, 5, 6)])
def test_high_rank_reduction(axes):
    """jax-ml/jax#40412: reductions of rank-7 arrays crashed."""
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 5, 2, 3, 4)).astype(np.float32)
    judge(jax.jit(lambda x: jnp.sum(x, axes))(x), x.astype(np.float64).sum(axes), 1e-5, "a reduction of rank 7")


@pytest.mark.parametrize("segments", [1, 3, 1000])
def test_scatter_add_into_few_segments(segments):
    """Float32 scatter into few segments: slow on some GPU builds, and order-dependent; the sum must still be right."""
    rng = np.random.default_rng(2)
    x, ids = rng.normal(size=(50_000, 3)).astype(np.float32), np.sort(rng.integers(0, segments, 50_000))
    got = jax.jit(lambda x, i: jax.ops.segment_sum(x, i, segments, indices_are_sorted=True))(x, ids)
    want = np.zeros((segments, 3))
    np.add.at(want, ids, x.astype(np.float64))
    judge(got, want, 1e-3, "a sorted scatter-add")


def test_small_dimension_contractions():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(40_000, 3, 3)).astype(np.float32), rng.normal(size=(40_000, 3, 3)).astype(np.float32)
    got = jax.jit(lambda a, b: jnp.einsum("nij,njk->nik", a, b, precision="highest"))(a, b)
    judge(got, np.einsum("nij,njk->nik", a.astype(np.float64), b), 1e-5, "a batch of 3 x 3 products")


def test_scan_gradient_and_gather():
    rng = np.random.default_rng(4)
    x, index = rng.normal(size=(100, 3)).astype(np.float32), rng.integers(0, 100, (7, 500))

    def f(x):
        def body(total, i):
            return total + jnp.sum(x[i] ** 3), None

        return jax.lax.scan(body, jnp.zeros((), x.dtype), index)[0]

    want = 3 * np.bincount(index.ravel(), minlength=100)[:, None] * x.astype(np.float64) ** 2
    judge(jax.jit(jax.grad(f))(x), want, 1e-5, "the gradient of a gather inside a scan")


def test_cumulative_and_sorting_operations():
    x = np.random.default_rng(5).normal(size=(70_001,)).astype(np.float32)
    order = np.asarray(jax.jit(jnp.argsort)(x))
    np.testing.assert_array_equal(x[order], np.sort(x))
    judge(jax.jit(jnp.cumsum)(np.abs(x)), np.cumsum(np.abs(x), dtype=np.float64), 1e-4, "a cumulative sum")
