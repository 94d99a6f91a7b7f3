"""The slow reference of products on the sphere: sums over Clebsch-Gordan paths, with 3j symbols by Racah's formula."""

import functools
from math import factorial

import numpy as np


@functools.cache
def threej(a, b, c, ma, mb):
    """|3j(a b c; ma mb -ma-mb)| by Racah's sum over factorials."""
    f = factorial
    mc = -ma - mb
    triangle = f(a + b - c) * f(a - b + c) * f(-a + b + c) / f(a + b + c + 1)
    root = triangle * f(a + ma) * f(a - ma) * f(b + mb) * f(b - mb) * f(c + mc) * f(c - mc)
    total = 0.0
    for t in range(a + b + c + 1):
        parts = (t, c - b + t + ma, c - a + t - mb, a + b - c - t, a - t - ma, b - t + mb)
        if min(parts) >= 0:
            product = 1
            for part in parts:
                product *= f(part)
            total += (-1) ** t / product
    return abs(np.sqrt(root) * total)


def sum_over_paths(x, y, lmax_out, factor, *, parity):
    """sum of factor * [x (x) y], in unit Clebsch-Gordan blocks of e3nn, over paths with l1 + l2 + l3 = parity mod 2."""
    import e3nn_jax as e3nn

    x, y = np.asarray(x), np.asarray(y)
    l1, l2 = (int(np.sqrt(v.shape[-1])) - 1 for v in (x, y))
    out = np.zeros((*x.shape[:-1], (lmax_out + 1) ** 2))
    for a in range(l1 + 1):
        for b in range(l2 + 1):
            for c in range(abs(a - b), min(a + b, lmax_out) + 1):
                if (a + b + c) % 2 == parity:
                    cg = np.asarray(e3nn.clebsch_gordan(a, b, c))
                    cg = cg / np.linalg.norm(cg)
                    block = np.einsum(
                        "...i,...j,ijk->...k", x[..., a * a : (a + 1) ** 2], y[..., b * b : (b + 1) ** 2], cg
                    )
                    out[..., c * c : (c + 1) ** 2] += factor(a, b, c) * block
    return out
