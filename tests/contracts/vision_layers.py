"""Contract entries of `vision`: shifts of the torus by any whole number of pixels."""

import jax
import jax.numpy as jnp

from equivariant_jax.core import groups
from equivariant_jax.core import representations as rep
from equivariant_jax.vision import (
    PyramidConfig,
    ViTConfig,
    attention_init,
    canonical_anchor,
    depthwise_position,
    depthwise_position_init,
    global_attention,
    in_canonical_frame,
    patch_embed,
    patch_embed_init,
    polyphase_anchor,
    polyphase_energy,
    polyphase_restore,
    shift_vit_apply,
    shift_vit_dense,
    shift_vit_init,
    subsampled_attention,
    window_attention,
)
from tests.contracts.layer import Law, Layer

__all__ = ["LAYERS"]

HEIGHT, WIDTH, CHANNELS, STRIDE = 6, 12, 4, 3
PIXELS, BLOCKS = groups.TorusShifts((HEIGHT, WIDTH)), groups.TorusShifts((HEIGHT // STRIDE, WIDTH // STRIDE))
IMAGE = rep.Shifted((-3, -2))
BY_BLOCKS = rep.Shifted((-3, -2), (STRIDE, STRIDE))  # an image, moved by whole blocks

VIT = ViTConfig(patch=3, width=8, depth=1, heads=2, num_classes=3, channels_in=CHANNELS)
TWINS = PyramidConfig(
    patch=1, widths=(4, 8), depths=(2, 1), heads=(2, 2), window=3, reductions=(2, 1), num_classes=3,
    channels_in=CHANNELS,
)  # fmt: skip
SWIN = PyramidConfig(
    kind="swin", patch=2, widths=(8,), depths=(2,), heads=(2,), window=3, reductions=(1,), num_classes=3,
    channels_in=CHANNELS,
)  # fmt: skip


def _make(init=lambda key, dtype: {}, shape=(HEIGHT, WIDTH, CHANNELS)):
    def make(key, dtype):
        # Parameters that do not depend on the example, far from where attention is flat.
        params = init(jax.random.key(7), dtype)
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(8), max(len(leaves), 1))
        moved = [
            x + jax.random.normal(k, x.shape, dtype) * jnp.asarray(0.2, dtype)
            for k, x in zip(keys, leaves, strict=False)
        ]
        return structure.unflatten(moved), (jax.random.normal(key, shape, dtype),)

    return make


def _attention(**options):
    return lambda key, dtype: attention_init(key, CHANNELS, 2, dtype=dtype, **options)


def _model(config):
    return _make(lambda key, dtype: shift_vit_init(key, config, dtype=dtype))


INVARIANT, EQUIVARIANT = (Law(PIXELS, (IMAGE,), rep.Trivial()),), (Law(PIXELS, (IMAGE,), IMAGE),)
IN_BLOCKS = (Law(BLOCKS, (BY_BLOCKS,), BY_BLOCKS),)

LAYERS: list[Layer] = [
    Layer(
        name="vision.polyphase_energy",
        # Energies of components that a shift permutes: their largest is left alone.
        function=lambda params, x: jnp.max(polyphase_energy(x, STRIDE), axis=(-2, -1)),
        make=_make(),
        laws=INVARIANT,
        dtypes=("float32",),  # energies are float32 at least
        leading_axes=True,
    ),
    Layer(
        name="vision.polyphase_anchor",
        # Copies differ by whole strides: the set of strided entries is left alone.
        function=lambda params, x: jnp.sort(
            polyphase_anchor(x, STRIDE)[0][..., ::STRIDE, ::STRIDE, 0].reshape(*x.shape[:-3], -1), axis=-1
        ),
        make=_make(),
        laws=INVARIANT,
        leading_axes=True,
    ),
    Layer(
        name="vision.canonical_anchor",
        function=lambda params, x: canonical_anchor(x, (STRIDE,))[0],
        make=_make(),
        laws=INVARIANT,
        leading_axes=True,
    ),
    Layer(
        name="vision.polyphase_restore",
        function=lambda params, x: polyphase_restore(
            jnp.cumsum(canonical_anchor(x)[0], axis=-3), canonical_anchor(x)[1]
        ),
        make=_make(),
        laws=EQUIVARIANT,
        leading_axes=True,
    ),
    Layer(
        name="vision.in_canonical_frame (window attention)",
        function=lambda params, x: in_canonical_frame(
            lambda y: window_attention(params, y, window=STRIDE, heads=2, offset=1), x, (STRIDE,)
        ),
        make=_make(_attention(window=STRIDE)),
        laws=EQUIVARIANT,
        leading_axes=True,
    ),
    Layer(
        name="vision.patch_embed",
        function=lambda params, x: patch_embed(params, x),
        make=_make(lambda key, dtype: patch_embed_init(key, STRIDE, CHANNELS, 5, dtype=dtype)),
        laws=(Law(BLOCKS, (BY_BLOCKS,), IMAGE),),
        leading_axes=True,
    ),
    Layer(
        name="vision.depthwise_position",
        function=lambda params, x: depthwise_position(params, x),
        make=_make(lambda key, dtype: depthwise_position_init(key, CHANNELS, dtype=dtype)),
        laws=EQUIVARIANT,
        leading_axes=True,
    ),
    Layer(
        name="vision.window_attention",
        function=lambda params, x: window_attention(params, x, window=STRIDE, heads=2, offset=1),
        make=_make(_attention(window=STRIDE)),
        laws=IN_BLOCKS,
        leading_axes=True,
    ),
    Layer(
        name="vision.subsampled_attention",
        function=lambda params, x: subsampled_attention(params, x, heads=2),
        make=_make(_attention(stride=STRIDE)),
        laws=IN_BLOCKS,
        leading_axes=True,
    ),
    Layer(
        name="vision.global_attention",
        function=lambda params, x: global_attention(params, x, heads=2),
        make=_make(_attention(), (7, CHANNELS)),
        laws=(Law(groups.Symmetric(7), (rep.Permuted((-2,)),), rep.Permuted((-2,))),),
        leading_axes=True,
    ),
    Layer(
        name="vision.shift_vit_apply (ViT)",
        function=lambda params, x: shift_vit_apply(params, x, VIT),
        make=_model(VIT),
        laws=INVARIANT,
        leading_axes=True,
    ),
    Layer(
        name="vision.shift_vit_apply (Twins)",
        function=lambda params, x: shift_vit_apply(params, x, TWINS),
        make=_model(TWINS),
        laws=INVARIANT,
        leading_axes=True,
        slow=True,
    ),
    Layer(
        name="vision.shift_vit_apply (Swin)",
        function=lambda params, x: shift_vit_apply(params, x, SWIN),
        make=_model(SWIN),
        laws=INVARIANT,
        leading_axes=True,
        slow=True,
    ),
    Layer(
        name="vision.shift_vit_dense",
        function=lambda params, x: shift_vit_dense(params, x, VIT),
        make=_model(VIT),
        laws=EQUIVARIANT,
        leading_axes=True,
        slow=True,
    ),
]
