"""Matchings against brute force and scipy; Sinkhorn against its marginals and its limit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core import assignment


def test_exact_against_brute_force(key):
    cost = jax.random.normal(key, (3, 2, 5, 5))
    got = jax.jit(assignment.linear_assignment)(cost)
    for index in np.ndindex(3, 2):
        c = np.asarray(cost[index])
        best = min(sum(c[i, p[i]] for i in range(5)) for p in itertools.permutations(range(5)))
        p = np.asarray(got[index])
        assert sorted(p) == list(range(5))
        np.testing.assert_allclose(c[np.arange(5), p].sum(), best, rtol=1e-5)
    largest = assignment.linear_assignment(cost, maximize=True)
    np.testing.assert_array_equal(largest, assignment.linear_assignment(-cost))


def test_exact_against_scipy_at_size(key):
    from scipy.optimize import linear_sum_assignment

    cost = np.asarray(jax.random.uniform(key, (40, 40)))
    rows, columns = linear_sum_assignment(cost)
    p = np.asarray(assignment.linear_assignment(cost))
    np.testing.assert_allclose(cost[np.arange(40), p].sum(), cost[rows, columns].sum(), rtol=1e-6)


def test_permutation_matrix_gathers(key):
    p, x = jnp.array([2, 0, 1]), jax.random.normal(key, (3, 4))
    np.testing.assert_array_equal(assignment.permutation_matrix(p) @ x, x[p])


def test_sinkhorn_marginals_and_limit(key):
    logits = jax.random.normal(key, (4, 6, 6))
    soft = assignment.sinkhorn(logits, num_iterations=100)
    np.testing.assert_allclose(soft.sum(-1), 1.0, atol=1e-4)
    np.testing.assert_allclose(soft.sum(-2), 1.0, atol=1e-5)
    hard = assignment.permutation_matrix(assignment.linear_assignment(logits, maximize=True))
    planted = logits + 4 * hard  # a clear winner, so that the limit is reached at a temperature that converges
    np.testing.assert_array_equal(assignment.linear_assignment(planted, maximize=True), jnp.argmax(hard, -1))
    sharp = assignment.sinkhorn(planted, num_iterations=50, temperature=0.1)
    np.testing.assert_allclose(sharp, hard, atol=1e-3)


def test_sinkhorn_mask_scales_the_real_block(key):
    logits = jax.random.normal(key, (5, 5))
    rows = jnp.array([True, False, True, True, False])
    columns = jnp.array([False, True, True, True, False])
    full = assignment.sinkhorn(logits, num_iterations=50, mask=(rows, columns))
    block = assignment.sinkhorn(logits[jnp.ix_(np.flatnonzero(rows), np.flatnonzero(columns))], num_iterations=50)
    np.testing.assert_allclose(full[np.ix_(rows, columns)], block, atol=1e-5)
    assert float(jnp.abs(jnp.where(rows[:, None] & columns[None, :], 0.0, full)).max()) == 0.0
    grad = jax.grad(lambda x: assignment.sinkhorn(x, mask=(rows, columns))[0, 1])(logits)
    assert jnp.isfinite(grad).all()
    assert (np.asarray(grad)[~np.asarray(rows)] == 0).all()


def test_errors():
    with pytest.raises(ValueError, match="n, n"):
        assignment.linear_assignment(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="num_iterations"):
        assignment.sinkhorn(jnp.ones((2, 2)), num_iterations=0)
    with pytest.raises(ValueError, match="masks of shape"):
        assignment.sinkhorn(jnp.ones((2, 2)), mask=(jnp.ones(3, bool), jnp.ones(2, bool)))
