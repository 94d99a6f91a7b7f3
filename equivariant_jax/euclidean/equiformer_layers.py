r"""The node-wise layers of an EquiformerV2 network, as pure functions.

Features are `[..., (lmax + 1)**2, channels]`. The activations also take features in an edge's frame (`edge_frames`),
order by order as `orders_first` lists them.

- `equivariant_layer_norm`: scalars as usual; all higher degrees by one root mean square in which degrees count equally.
- `sphere_activation`: a pointwise function of the field on the sphere's grid; `gate_activation`, its exact alternative.
- `feed_forward`: linear, activation, linear.
- `selfmix`: the Gaunt self-interaction, which multiplies two linear images of a node's field.

Law: all commute with rotations and reflections, `f(D x) == D f(x)`, with one reservation: a function that is no
polynomial gives the field all degrees, and what the grid cannot tell apart from a lower degree breaks the symmetry of
`sphere_activation` a little. The defect falls quickly with the degree of the grid; the tests measure it.

References: Liao et al. 2024, arXiv:2306.12059 (EquiformerV2); Luo et al. 2024, arXiv:2401.10216, section 3 (Gaunt
self-interaction).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from equivariant_jax.core.sphere import sphere_table
from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.euclidean.edge_frames import orders_first
from equivariant_jax.euclidean.gaunt import gaunt_tensor_product
from equivariant_jax.euclidean.irreps import degree_index, degree_linear, expand_degrees, lmax_of
from equivariant_jax.euclidean.quadrature import sphere_quadrature

__all__ = [
    "add_to_scalars",
    "degree_kernels",
    "equivariant_layer_norm",
    "feed_forward",
    "feed_forward_init",
    "gate_activation",
    "layer_norm_init",
    "selfmix",
    "selfmix_init",
    "sphere_activation",
]


def degree_kernels(key: PRNGKey, lmax: int, channels_in: int, channels_out: int, *, dtype=jnp.float32) -> Array:
    """Draws kernels for `degree_linear` that keep the variance.

    Args:
      key: typed random key.
      lmax: static; largest degree.
      channels_in: static; channels of the input.
      channels_out: static; channels of the output.
      dtype: dtype of the kernels.

    Returns:
      Array of shape `[lmax + 1, channels_in, channels_out]`.
    """
    scale = np.asarray(channels_in**-0.5, dtype)
    return jax.random.normal(key, (lmax + 1, channels_in, channels_out), dtype) * scale


def add_to_scalars(x: Array, bias: Array) -> Array:
    """Adds a bias to the coefficients of degree zero.

    Args:
      x: features, shape `[..., n, channels]` with degree zero first.
      bias: shape `[channels]`, dtype of `x`.

    Returns:
      Array of the shape and dtype of `x`.
    """
    return jnp.concatenate([x[..., :1, :] + bias.reshape((1,) * (x.ndim - 1) + (-1,)), x[..., 1:, :]], axis=-2)


def layer_norm_init(lmax: int, channels: int, *, dtype=jnp.float32) -> PyTree:
    """Makes the parameters of `equivariant_layer_norm`, at which it only normalises.

    Args:
      lmax: static; largest degree.
      channels: static; number of channels.
      dtype: dtype of the parameters.

    Returns:
      Dict with `scale` of shape `[lmax + 1, channels]` and `bias` of shape `[channels]`.
    """
    return {"scale": jnp.ones((lmax + 1, channels), dtype), "bias": jnp.zeros((channels,), dtype)}


def equivariant_layer_norm(params: PyTree, x: Array, *, epsilon: float = 1e-5) -> Array:
    r"""Normalises scalars by their mean and variance, all higher degrees by one balanced root mean square.

    The mean square of the higher degrees is `1/L sum_l 1/(2l+1) sum_m mean_c x_lmc^2`, so that a high degree with its
    many components does not outweigh the others (EquiformerV2's separable layer normalisation).

    Args:
      params: from `layer_norm_init`.
      x: features, shape `[..., (lmax + 1)**2, channels]`, float.
      epsilon: static; added to the mean squares.

    Returns:
      Array of the shape and dtype of `x`.

    Example:
      >>> x = 3.0 * jax.random.normal(jax.random.key(0), (9, 64))
      >>> y = equivariant_layer_norm(layer_norm_init(2, 64), x)
      >>> round(float(jnp.std(y[0])), 2), abs(float(jnp.mean(y[1:] ** 2)) - 1) < 0.1
      (1.0, True)
    """
    lmax, dtype = lmax_of(x.shape[-2]), x.dtype
    small = np.asarray(epsilon, dtype)
    scalars = x[..., :1, :] - jnp.mean(x[..., :1, :], axis=-1, keepdims=True)
    scalars = scalars * lax.rsqrt(jnp.mean(scalars**2, axis=-1, keepdims=True) + small)
    parts = [scalars]
    if lmax > 0:
        balance = 1.0 / (lmax * (2 * degree_index(lmax)[1:] + 1.0))
        weights = np.asarray(balance, dtype).reshape((1,) * (x.ndim - 2) + (-1,))
        square = jnp.sum(jnp.mean(x[..., 1:, :] ** 2, axis=-1) * weights, axis=-1)
        parts.append(x[..., 1:, :] * lax.rsqrt(square + small)[..., None, None])
    normed = jnp.concatenate(parts, axis=-2)
    scale = expand_degrees(params["scale"], axis=-2)
    return add_to_scalars(normed * scale.reshape((1,) * (x.ndim - 2) + scale.shape), params["bias"])


@functools.cache
def _grid(lmax: int, mmax: int | None, degree: int) -> tuple[np.ndarray, np.ndarray]:
    # Values [G, n] and projection [n, G]; all coefficients by degree, or those of order <= mmax in `orders_first`.
    rule = sphere_quadrature(degree)
    values = sphere_table(rule.points, lmax)
    if mmax is not None:
        values = values[:, orders_first(lmax, mmax)]
    # A field of unit variance for coefficients of unit variance, so that the function bends where it should.
    scale = np.sqrt(4 * np.pi / values.shape[1])
    return values * scale, (values * rule.weights[:, None]).T / scale


def sphere_activation(
    x: Array,
    scalars: Array,
    *,
    lmax: int,
    grid_degree: int,
    mmax: int | None = None,
    function: Callable[[Array], Array] = jax.nn.silu,
    precision=lax.Precision.HIGHEST,
) -> Array:
    r"""Applies a function to the field on the sphere; SiLU of separate scalars takes the place of degree 0.

    The law `D act(x) == act(D x)` holds as far as the grid resolves the result: exactly for a polynomial of order `p`
    on a grid of degree `(p + 1) lmax`, and with a defect that falls with `grid_degree` for anything else.

    Args:
      x: features, shape `[..., n, channels]`, float: all `(lmax + 1)**2` coefficients, or in a frame those of
        `orders_first(lmax, mmax)`.
      scalars: shape `[..., channels]`, dtype of `x`.
      lmax: static; largest degree.
      grid_degree: static; degree of the quadrature rule, at least `2 lmax` or linear functions fail.
      mmax: static; largest order in a frame, None for a field by degree.
      function: static; function of the field's values `[G, ..., channels]`, acting on each point alone.
      precision: static; precision of the matrix products.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: if `grid_degree < 2 lmax`.

    Example:
      >>> sphere_activation(jnp.ones((5, 9, 3)), jnp.ones((5, 3)), lmax=2, grid_degree=8).shape
      (5, 9, 3)

    References:
      Liao et al. 2024, arXiv:2306.12059, section 4.3 (separable S2 activation).
    """
    if grid_degree < 2 * lmax:
        raise ValueError(f"grid_degree must be at least 2 lmax = {2 * lmax}, got {grid_degree}.")
    values, projection = _grid(lmax, mmax, grid_degree)
    # Coefficients first and all else flat: two plain matrix products, and on CPU half the time of batched ones.
    first = jnp.moveaxis(x, -2, 0)
    rest = first.shape[1:]
    field = jnp.matmul(np.asarray(values, x.dtype), first.reshape(first.shape[0], math.prod(rest)), precision=precision)
    field = function(field.reshape(len(values), *rest)).reshape(field.shape)
    # The scalars' own path replaces degree 0: its row need not be projected.
    higher = jnp.matmul(np.asarray(projection[1:], x.dtype), field, precision=precision)
    higher = jnp.moveaxis(higher.reshape(len(projection) - 1, *rest), 0, -2)
    return jnp.concatenate([jax.nn.silu(scalars)[..., None, :], higher], axis=-2)


def gate_activation(x: Array, scalars: Array, *, lmax: int, mmax: int | None = None) -> Array:
    """Multiplies each higher degree by a sigmoid of its own scalars: exactly equivariant, and blind to the field.

    Args:
      x: features, shape `[..., n, channels]`, float, laid out as for `sphere_activation`.
      scalars: shape `[..., (lmax + 1) * channels]`, dtype of `x`: new degree 0, then the gates of degrees `1..lmax`.
      lmax: static; largest degree.
      mmax: static; largest order in a frame, None for a field by degree.

    Returns:
      Array of the shape and dtype of `x`.

    Example:
      >>> gate_activation(jnp.ones((5, 9, 3)), jnp.ones((5, 9)), lmax=2).shape
      (5, 9, 3)
    """
    degrees = degree_index(lmax) if mmax is None else degree_index(lmax)[orders_first(lmax, mmax)]
    scalars = scalars.reshape((*scalars.shape[:-1], lmax + 1, x.shape[-1]))
    gates = jnp.take(jax.nn.sigmoid(scalars), degrees[1:], axis=-2)
    return jnp.concatenate([jax.nn.silu(scalars[..., :1, :]), x[..., 1:, :] * gates], axis=-2)


def feed_forward_init(
    key: PRNGKey,
    lmax: int,
    channels: int,
    hidden: int,
    *,
    gated: bool = False,
    grid_mlp: bool = False,
    dtype=jnp.float32,
) -> PyTree:
    """Draws the parameters of `feed_forward`.

    Args:
      key: typed random key.
      lmax: static; largest degree.
      channels: static; channels of input and output.
      hidden: static; channels in between.
      gated: static; for `gate_activation` instead of `sphere_activation`.
      grid_mlp: static; with a network of three layers at each point of the sphere instead of one function.
      dtype: dtype of the parameters.

    Returns:
      Dict of `first`, `second` of shapes `[lmax+1, channels, hidden]`, `[lmax+1, hidden, channels]`, their biases,
      `scalars` of shape `[channels, hidden or (lmax + 1) * hidden]`, and `grid` of shape `[3, hidden, hidden]`.
    """
    first, second, scalars, grid = jax.random.split(key, 4)
    wide = (lmax + 1) * hidden if gated else hidden
    params = {
        "first": degree_kernels(first, lmax, channels, hidden, dtype=dtype),
        "first_bias": jnp.zeros((hidden,), dtype),
        "second": degree_kernels(second, lmax, hidden, channels, dtype=dtype),
        "second_bias": jnp.zeros((channels,), dtype),
        "scalars": degree_kernels(scalars, 0, channels, wide, dtype=dtype)[0],
        "scalars_bias": jnp.zeros((wide,), dtype),
    }
    if grid_mlp:
        params["grid"] = degree_kernels(grid, 2, hidden, hidden, dtype=dtype)
    return params


def feed_forward(params: PyTree, x: Array, *, grid_degree: int, precision=lax.Precision.HIGHEST) -> Array:
    """Applies linear, activation, linear; gated, on the grid, or with a network on the grid, as the parameters are.

    Args:
      params: from `feed_forward_init`.
      x: features, shape `[..., (lmax + 1)**2, channels]`, float.
      grid_degree: static; degree of the quadrature rule of the activation.
      precision: static; precision of the matrix products.

    Returns:
      Array of the shape and dtype of `x`.

    Example:
      >>> params = feed_forward_init(jax.random.key(0), 2, 4, 8)
      >>> feed_forward(params, jnp.ones((5, 9, 4)), grid_degree=6).shape
      (5, 9, 4)
    """
    lmax = lmax_of(x.shape[-2])
    bias = params["scalars_bias"].reshape((1,) * (x.ndim - 2) + (-1,))
    scalars = jnp.matmul(x[..., 0, :], params["scalars"], precision=precision) + bias
    hidden = add_to_scalars(degree_linear(params["first"], x), params["first_bias"])
    if scalars.shape[-1] != hidden.shape[-1]:
        hidden = gate_activation(hidden, scalars, lmax=lmax)
    else:
        function: Callable[[Array], Array] = jax.nn.silu
        if "grid" in params:
            one, two, three = params["grid"]

            def network(field: Array) -> Array:
                field = jax.nn.silu(jnp.matmul(field, one, precision=precision))
                field = jax.nn.silu(jnp.matmul(field, two, precision=precision))
                return jnp.matmul(field, three, precision=precision)

            function = network
        hidden = sphere_activation(
            hidden, scalars, lmax=lmax, grid_degree=grid_degree, function=function, precision=precision
        )
    return add_to_scalars(degree_linear(params["second"], hidden), params["second_bias"])


def selfmix_init(key: PRNGKey, lmax: int, channels: int, *, dtype=jnp.float32) -> PyTree:
    """Draws the parameters of `selfmix`.

    Args:
      key: typed random key.
      lmax: static; largest degree.
      channels: static; number of channels.
      dtype: dtype of the parameters.

    Returns:
      Dict of `left`, `right`, `out` of shape `[lmax + 1, channels, channels]` and `weights`, the factors per degree and
      channel of both inputs and of the output, shape `[3, lmax + 1, channels]`.
    """
    left, right, out = jax.random.split(key, 3)
    return {
        "left": degree_kernels(left, lmax, channels, channels, dtype=dtype),
        "right": degree_kernels(right, lmax, channels, channels, dtype=dtype),
        "out": degree_kernels(out, lmax, channels, channels, dtype=dtype),
        "weights": jnp.ones((3, lmax + 1, channels), dtype),
    }


def selfmix(params: PyTree, x: Array, *, precision=lax.Precision.HIGHEST) -> Array:
    r"""Multiplies two linear images of each node's field and mixes the channels of the product, cut to equal degrees.

    `z = out(w3 * GTP(w1 * left(x), w2 * right(x)))` with factors per degree, as the paper's weights of a product's
    paths. The linear maps could take these factors in; they stand apart so that each path has a scale of its own.

    Args:
      params: from `selfmix_init`.
      x: features, shape `[..., (lmax + 1)**2, channels]`, float.
      precision: static; precision of the matrix products.

    Returns:
      Array of the shape and dtype of `x`.

    Example:
      >>> selfmix(selfmix_init(jax.random.key(0), 2, 4), jnp.ones((5, 9, 4))).shape
      (5, 9, 4)

    References:
      Luo et al. 2024, arXiv:2401.10216, section 3 (equivariant feature interaction) and its OC20 experiment.
    """
    lmax = lmax_of(x.shape[-2])
    weights = expand_degrees(params["weights"], axis=1)
    weights = weights.reshape(3, *(1,) * (x.ndim - 2), *weights.shape[1:])
    left = degree_linear(params["left"], x) * weights[0]
    right = degree_linear(params["right"], x) * weights[1]
    product = gaunt_tensor_product(
        jnp.swapaxes(left, -1, -2),
        jnp.swapaxes(right, -1, -2),
        lmax_out=lmax,
        normalization="component",
        precision=precision,
    )
    return degree_linear(params["out"], jnp.swapaxes(product, -1, -2) * weights[2])
