"""Linen modules around the products: weights per degree, channel mixing, and the convolution's radial network.

Features are `[..., channels, (lmax + 1)**2]` for products and `[n_node, (lmax + 1)**2, channels]` for the convolution,
as in the functions they call. Channel mixing per degree before and after a channelwise product is what gives back the
expressivity that one weight per path has in a Clebsch-Gordan layer.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.bracket import spherical_poisson_bracket
from equivariant_jax.euclidean.convolution import gaunt_convolution
from equivariant_jax.euclidean.gaunt import ProductNormalization, gaunt_tensor_product
from equivariant_jax.euclidean.irreps import degree_linear, lmax_of
from equivariant_jax.nn.mlp import mlp_apply, mlp_init

__all__ = ["GauntConvolution", "GauntSelfInteraction", "SphericalProduct"]


class SphericalProduct(nn.Module):
    """Channelwise product of two features with learned factors per degree and channel, `w_l1 w_l2 w_l3`.

    Attributes:
      lmax_out: largest degree of the result; None for all.
      kind: "gaunt" for the paths with `l1 + l2 + l3` even, "bracket" for the odd ones.
      normalization: as in `gaunt_tensor_product`.
      method: as in `gaunt_tensor_product`.
      precision: of the matrix products.
    """

    lmax_out: int | None = None
    kind: Literal["gaunt", "bracket"] = "gaunt"
    normalization: ProductNormalization = "component"
    method: Any = "auto"
    precision: Any = lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        """Multiplies `x` `[..., channels, (L1+1)**2]` by `y` of as many channels or one."""
        if self.kind not in ("gaunt", "bracket"):
            raise ValueError(f'kind must be "gaunt" or "bracket", got {self.kind!r}.')
        product = gaunt_tensor_product if self.kind == "gaunt" else spherical_poisson_bracket
        lmax1, lmax2 = lmax_of(x.shape[-1]), lmax_of(y.shape[-1])
        full = lmax1 + lmax2 if self.kind == "gaunt" else max(lmax1 + lmax2 - 1, 0)
        lmax_out = full if self.lmax_out is None else self.lmax_out
        channels = max(x.shape[-2], y.shape[-2])

        def factors(name: str, channels: int, lmax: int) -> Array:
            return self.param(name, nn.initializers.ones, (channels, lmax + 1), x.dtype)

        weights = (
            factors("x_scale", x.shape[-2], lmax1),
            factors("y_scale", y.shape[-2], lmax2),
            factors("out_scale", channels, lmax_out),
        )
        return product(
            x,
            y,
            lmax_out=lmax_out,
            weights=weights,
            normalization=self.normalization,
            method=self.method,
            precision=self.precision,
        )


class GauntSelfInteraction(nn.Module):
    """Product of two learned channel mixtures of one feature, mixed again: `W3 (W1 x * W2 x)`, degree by degree.

    Attributes:
      features: channels of the result; None for those of the input.
      lmax_out: largest degree of the result; None for that of the input.
      hidden: channels of the product; None for those of the input.
      normalization: as in `gaunt_tensor_product`.
      method: as in `gaunt_tensor_product`.
      precision: of the matrix products.
    """

    features: int | None = None
    lmax_out: int | None = None
    hidden: int | None = None
    normalization: ProductNormalization = "component"
    method: Any = "auto"
    precision: Any = lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[..., channels, (lmax + 1)**2]` to `[..., features, (lmax_out + 1)**2]`."""
        lmax, channels = lmax_of(x.shape[-1]), x.shape[-2]
        lmax_out = lmax if self.lmax_out is None else self.lmax_out
        hidden = channels if self.hidden is None else self.hidden
        features = channels if self.features is None else self.features
        normal = nn.initializers.normal

        def mix(v: Array, name: str, lmax: int, width: int) -> Array:
            kernel = self.param(name, normal(v.shape[-2] ** -0.5), (lmax + 1, v.shape[-2], width), v.dtype)
            return jnp.swapaxes(degree_linear(kernel, jnp.swapaxes(v, -1, -2)), -1, -2)

        product = gaunt_tensor_product(
            mix(x, "left", lmax, hidden),
            mix(x, "right", lmax, hidden),
            lmax_out=lmax_out,
            normalization=self.normalization,
            method=self.method,
            precision=self.precision,
        )
        return mix(product, "out", lmax_out, features)


class GauntConvolution(nn.Module):
    """Convolution over edges with a learned radial network, `sum_j GTP(x_j, sum_l R_l(e_ij) Y_l(r_ij))`.

    Attributes:
      lmax_filter: largest degree of the filter.
      lmax_out: largest degree of the result.
      hidden: hidden widths of the radial network, which has no bias: edges whose radial features vanish do so too.
      method: "grid" or "rotated", as in `gaunt_convolution`.
      precision: of the matrix products.
    """

    lmax_filter: int
    lmax_out: int
    hidden: tuple[int, ...] = (64,)
    method: Literal["grid", "rotated"] = "grid"
    precision: Any = lax.Precision.HIGHEST

    @nn.compact
    def __call__(
        self,
        x: Array,
        vectors: Array,
        radial_features: Array,
        senders: Array,
        receivers: Array,
        mask: Array | None = None,
    ) -> Array:
        """Maps `[n_node, (L1+1)**2, c]`, `[n_edge, 3]`, `[n_edge, b]` and edges to `[n_node, (lmax_out+1)**2, c]`."""
        channels = x.shape[-1]
        sizes = (radial_features.shape[-1], *self.hidden, (self.lmax_filter + 1) * channels)
        params = self.param("radial", lambda key: mlp_init(key, sizes, use_bias=False, dtype=x.dtype))
        radial = mlp_apply(params, radial_features, precision=self.precision)
        radial = radial.reshape(radial.shape[0], self.lmax_filter + 1, channels)
        return gaunt_convolution(
            x,
            vectors,
            radial,
            senders,
            receivers,
            lmax_out=self.lmax_out,
            method=self.method,
            mask=mask,
            precision=self.precision,
        )
