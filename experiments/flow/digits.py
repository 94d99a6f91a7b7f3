"""Digits to make sequences from, in three parts."""

import functools

import numpy as np

from equivariant_jax.data.flowing import half_scale
from equivariant_jax.data.images import mnist, small_digits

__all__ = ["digit_parts"]


@functools.cache
def digit_parts(dataset: str, *, half: bool = True) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads digits; the last tenth of MNIST's training digits is for validation.

    Args:
      dataset: "mnist", or "digits" (1,797 of 8 x 8, from scikit-learn).
      half: whether MNIST has 14 x 14 pixels in 16 x 16, rather than 28 x 28; "digits" are as they are.

    Returns:
      `train`, `validation` and `test`: images `[n, height, width]`, float32 in [0, 1], and labels `[n]`.
    """
    if dataset == "digits":
        arrays = small_digits().arrays
        images, labels = arrays["image"][..., 0].astype(np.float32) / 16, arrays["label"]
        parts = {"train": slice(0, 1300), "validation": slice(1300, 1500), "test": slice(1500, None)}
        return {name: (images[part], labels[part]) for name, part in parts.items()}
    found, sets = {}, {split: mnist(split).arrays for split in ("train", "test")}
    parts = {"train": ("train", 0, 54_000), "validation": ("train", 54_000, None), "test": ("test", 0, None)}
    for name, (split, start, stop) in parts.items():
        images, labels = sets[split]["image"][start:stop, ..., 0], sets[split]["label"][start:stop]
        found[name] = (half_scale(images) if half else images.astype(np.float32) / 255), labels
    return found
