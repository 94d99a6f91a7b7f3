"""Mixed precision: which dtype parameters, arithmetic and outputs have.

Statistics and softmax stay in float32 whatever the policy: `core.segments` accumulates there, and layers cast back to
the compute dtype themselves.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from equivariant_jax.core.typing import PyTree

__all__ = ["Policy", "cast_floating"]


def cast_floating(tree: PyTree, dtype: Any) -> PyTree:
    """Casts the floating-point leaves of a pytree; integers, booleans, keys and complex numbers stay as they are.

    Args:
      tree: pytree of arrays of any shape and dtype.
      dtype: floating dtype.

    Returns:
      Pytree of the same structure and shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> out = cast_floating({"w": jnp.ones(2), "step": jnp.array(3)}, jnp.bfloat16)
      >>> out["w"].dtype.name, out["step"].dtype.name
      ('bfloat16', 'int32')
    """

    def cast(x):
        if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating):
            return x.astype(dtype)
        return x

    return jax.tree.map(cast, tree)


@dataclasses.dataclass(frozen=True)
class Policy:
    """Three dtypes: parameters are stored in one, arithmetic runs in the next, results leave in the last.

    Attributes:
      param_dtype: dtype name of stored parameters and of optimiser state; keep `"float32"` for training.
      compute_dtype: dtype name that parameters are cast to before the model runs. `training` leaves batches as they
        are (energies of hundreds of eV do not fit bfloat16): a loss casts the inputs that it wants cast.
      output_dtype: dtype name of losses and predictions.

    Raises:
      ValueError: if a name is not a floating dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> policy = Policy(compute_dtype="bfloat16")
      >>> policy.cast_to_compute({"w": jnp.ones(3)})["w"].dtype.name
      'bfloat16'
    """

    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    output_dtype: str = "float32"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            name = getattr(self, field.name)
            try:
                floating = jnp.issubdtype(jnp.dtype(name), jnp.floating)
            except TypeError:
                floating = False
            if not floating:
                raise ValueError(
                    f"Policy.{field.name} is {name!r}; expected the name of a floating dtype such as 'float32' or "
                    "'bfloat16'."
                )

    def cast_to_param(self, tree: PyTree) -> PyTree:
        """Casts floating leaves to `param_dtype`; shapes are kept."""
        return cast_floating(tree, self.param_dtype)

    def cast_to_compute(self, tree: PyTree) -> PyTree:
        """Casts floating leaves to `compute_dtype`; shapes are kept."""
        return cast_floating(tree, self.compute_dtype)

    def cast_to_output(self, tree: PyTree) -> PyTree:
        """Casts floating leaves to `output_dtype`; shapes are kept."""
        return cast_floating(tree, self.output_dtype)
