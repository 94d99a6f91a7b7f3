"""Vision transformers that commute with circular shifts of the image by any whole number of pixels.

- `polyphase`: anchoring, which moves an image to an origin that only its content chooses, exactly.
- `attention`: layers on maps of tokens, and which shifts they commute with.
- `shift_vit`: ViT, Twins-SVT and Swin with invariant logits and equivariant labels of pixels; how to measure it.

    >>> import jax, jax.numpy as jnp
    >>> from equivariant_jax.vision import ViTConfig, shift_vit_apply, shift_vit_init
    >>> config = ViTConfig(patch=4, width=16, depth=1, heads=2, num_classes=3)
    >>> params, x = shift_vit_init(jax.random.key(0), config), jax.random.normal(jax.random.key(1), (8, 8, 3))
    >>> shift_vit_apply(params, x, config).tolist() == shift_vit_apply(params, jnp.roll(x, 3, 1), config).tolist()
    True
"""

from equivariant_jax.vision.attention import (
    attention_init,
    depthwise_position,
    depthwise_position_init,
    global_attention,
    patch_embed,
    patch_embed_init,
    subsampled_attention,
    window_attention,
)
from equivariant_jax.vision.polyphase import (
    Criterion,
    canonical_anchor,
    in_canonical_frame,
    polyphase_anchor,
    polyphase_energy,
    polyphase_restore,
)
from equivariant_jax.vision.shift_vit import (
    ShiftConsistency,
    ShiftViT,
    ShiftViTSegmenter,
    shift_consistency,
    shift_vit_apply,
    shift_vit_dense,
    shift_vit_init,
)
from equivariant_jax.vision.shift_vit_config import (
    PyramidConfig,
    ViTConfig,
    ordinary_twin,
    swin_config,
    twins_config,
    vit_config,
)

__all__ = [
    "Criterion",
    "PyramidConfig",
    "ShiftConsistency",
    "ShiftViT",
    "ShiftViTSegmenter",
    "ViTConfig",
    "attention_init",
    "canonical_anchor",
    "depthwise_position",
    "depthwise_position_init",
    "global_attention",
    "in_canonical_frame",
    "ordinary_twin",
    "patch_embed",
    "patch_embed_init",
    "polyphase_anchor",
    "polyphase_energy",
    "polyphase_restore",
    "shift_consistency",
    "shift_vit_apply",
    "shift_vit_dense",
    "shift_vit_init",
    "subsampled_attention",
    "swin_config",
    "twins_config",
    "vit_config",
    "window_attention",
]
