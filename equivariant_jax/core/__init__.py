"""What a symmetry is, and how to test it.

`groups` compose, invert and sample elements; `representations` say how an element acts on an array; `checks` measure
whether a function respects it. Beside them stands what every room needs: padded graph batches (`graphs`), reductions of
ragged groups (`segments`), tables of spherical harmonics (`sphere`), decompositions with safe gradients (`linalg`),
matchings (`assignment`), images under shifts and rotations (`images`), mixed precision (`precision`), and a sentinel
that finds faulty XLA builds (`backend`).

Example:
  >>> import jax
  >>> from equivariant_jax.core import checks, groups, representations
  >>> x = jax.random.normal(jax.random.key(0), (6, 3))
  >>> report = checks.assert_invariant(
  ...     lambda x: (x @ x.T).sum(), groups.Orthogonal(3), representations.Vector(), jax.random.key(1), (x,)
  ... )
  >>> report.error < 1e-5
  True
"""

from equivariant_jax.core import (
    assignment,
    backend,
    checks,
    graphs,
    groups,
    images,
    linalg,
    precision,
    representations,
    segments,
    sphere,
    typing,
)
from equivariant_jax.core.checks import (
    EquivarianceReport,
    assert_equivariant,
    assert_invariant,
    assert_one_trace,
    assert_padding_invariant,
    equivariance_error,
)
from equivariant_jax.core.precision import Policy

__all__ = [
    "EquivarianceReport",
    "Policy",
    "assert_equivariant",
    "assert_invariant",
    "assert_one_trace",
    "assert_padding_invariant",
    "assignment",
    "backend",
    "checks",
    "equivariance_error",
    "graphs",
    "groups",
    "images",
    "linalg",
    "precision",
    "representations",
    "segments",
    "sphere",
    "typing",
]
