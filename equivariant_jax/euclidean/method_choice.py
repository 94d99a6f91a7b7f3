"""Which route of the Gaunt product to take: stub thresholds until measured."""

from typing import Any, Literal

__all__ = ["ProductMethod", "choose_method"]

ProductMethod = Literal["auto", "grid", "quadrant", "octant", "separable", "fourier", "sparse", "fused"]


def choose_method(lmax1: int, lmax2: int, lmax_out: int, rows: int, dtype: Any) -> ProductMethod:
    """Chooses."""
    degree = lmax1 + lmax2 + lmax_out
    if degree > 131:
        return "separable"
    return "grid" if degree < 18 else "quadrant" if degree < 28 else "octant"


BracketMethod = Literal["auto", "grid", "quadrant", "octant", "separable"]


def choose_bracket_method(lmax1: int, lmax2: int, lmax_out: int, rows: int, dtype: Any) -> BracketMethod:
    """Chooses."""
    degree = lmax1 + lmax2 + lmax_out
    return "separable" if degree > 131 else "grid" if degree < 18 else "quadrant" if degree < 28 else "octant"
