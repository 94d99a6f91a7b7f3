r"""Matchings between two sets: exact (Hungarian), soft (Sinkhorn), and the permutation matrices between them.

The exact solver is optax's, which runs under `jit` and `vmap`; this file adds the conventions of the library (batch
axes, masks, a permutation as an index vector) and the entropic relaxation in the log domain.

Law: for permutations `p`, `q` of rows and columns, `solve(cost[p][:, q])` is the same matching relabelled.

References: Kuhn 1955; Cuturi 2013, arXiv:1306.0895; Mena et al. 2018, arXiv:1802.08665.
"""

import jax
import jax.numpy as jnp
import optax

from equivariant_jax.core.typing import Array

__all__ = ["linear_assignment", "permutation_matrix", "sinkhorn"]


def _check_cost(name: str, cost: Array, *, square: bool) -> Array:
    cost = jnp.asarray(cost)
    if cost.ndim < 2 or (square and cost.shape[-1] != cost.shape[-2]) or not jnp.issubdtype(cost.dtype, jnp.floating):
        wanted = "`[..., n, n]`" if square else "`[..., n, m]`"
        raise ValueError(f"{name} got shape {cost.shape} and dtype {cost.dtype}; expected floating point {wanted}.")
    return cost


def linear_assignment(cost: Array, *, maximize: bool = False) -> Array:
    """Finds the permutation that minimises the sum of `cost[i, assignment[i]]`.

    Inside `jax.shard_map` pass `check_vma=False`: the carries of optax's loops start as values that do not vary over
    devices, which the check refuses.

    Args:
      cost: square cost matrices `[..., n, n]`, float, finite.
      maximize: static; maximise instead.

    Returns:
      Column assigned to each row, int32 `[..., n]`.

    Raises:
      ValueError: if `cost` is not square or not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> linear_assignment(jnp.array([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])).tolist()
      [1, 0, 2]
    """
    cost = _check_cost("linear_assignment", cost, square=True)
    cost = -cost if maximize else cost

    def solve(matrix):
        rows, columns = optax.assignment.hungarian_algorithm(matrix)
        return jnp.zeros(matrix.shape[0], jnp.int32).at[rows].set(columns.astype(jnp.int32))

    flat = cost.reshape((-1, *cost.shape[-2:]))
    return jax.vmap(solve)(flat).reshape(cost.shape[:-1])


def permutation_matrix(permutation: Array, dtype=jnp.float32) -> Array:
    """Matrices `P` with `(P @ x)[i] = x[permutation[i]]`.

    Args:
      permutation: index vectors `[..., n]`, integer.
      dtype: dtype of the result.

    Returns:
      Zero-one matrices `[..., n, n]`.

    Example:
      >>> import jax.numpy as jnp
      >>> (permutation_matrix(jnp.array([1, 0])) @ jnp.array([5.0, 7.0])).tolist()
      [7.0, 5.0]
    """
    permutation = jnp.asarray(permutation)
    return jax.nn.one_hot(permutation, permutation.shape[-1], dtype=dtype)


def sinkhorn(
    logits: Array, *, num_iterations: int = 20, temperature: float = 1.0, mask: tuple[Array, Array] | None = None
) -> Array:
    r"""Scales $\exp(\text{logits}/\tau)$ to a doubly stochastic matrix by alternating normalisation in the log domain.

    Args:
      logits: scores `[..., n, m]`, float; larger means more likely matched.
      num_iterations: static number of (row, column) normalisations, at least 1.
      temperature: $\tau > 0$; towards zero the result tends to the exact matching.
      mask: pair `(rows [..., n], columns [..., m])` of bool, True = real; the real block is what gets scaled, padding
        gets zero. The numbers of real rows and columns must agree for both marginals to be met.

    Returns:
      Array of the shape and dtype of `logits`; column sums are one up to rounding, row sums up to convergence.

    Raises:
      ValueError: if `logits` is not a floating-point matrix, `num_iterations < 1`, or the mask's shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> p = sinkhorn(jnp.array([[2.0, 0.0], [0.0, 2.0]]), temperature=0.1)
      >>> p.round(3).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    logits = _check_cost("sinkhorn", logits, square=False)
    if num_iterations < 1:
        raise ValueError(f"sinkhorn got num_iterations={num_iterations}; expected at least 1.")
    x = logits / jnp.asarray(temperature, logits.dtype)
    real = None
    if mask is not None:
        rows, columns = mask
        if rows.shape != logits.shape[:-1] or columns.shape != (*logits.shape[:-2], logits.shape[-1]):
            raise ValueError(
                f"sinkhorn got masks of shape {rows.shape} and {columns.shape} for logits {logits.shape}; expected "
                f"{logits.shape[:-1]} and {(*logits.shape[:-2], logits.shape[-1])}."
            )
        real = rows[..., :, None] & columns[..., None, :]
        # Finite, so that rows of padding normalise without NaN; far below any real score, so that it counts as zero.
        x = jnp.where(real, x, jnp.asarray(0.5 * jnp.finfo(x.dtype).min, x.dtype))

    def normalise(x, _):
        x = x - jax.nn.logsumexp(x, axis=-1, keepdims=True)
        if real is not None:
            x = jnp.where(real, x, jnp.asarray(0.5 * jnp.finfo(x.dtype).min, x.dtype))
        x = x - jax.nn.logsumexp(x, axis=-2, keepdims=True)
        if real is not None:
            x = jnp.where(real, x, jnp.asarray(0.5 * jnp.finfo(x.dtype).min, x.dtype))
        return x, None

    x, _ = jax.lax.scan(normalise, x, None, length=num_iterations)
    out = jnp.exp(x)
    return out if real is None else jnp.where(real, out, jnp.zeros((), out.dtype))
