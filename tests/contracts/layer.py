"""What a public layer declares about itself so that the contract suite can test it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Law", "Layer"]


@dataclasses.dataclass(frozen=True)
class Law:
    """One symmetry: how a group acts on each input and on the output.

    Attributes:
      group: a group of `core.groups`.
      act_in: representations, one for each input (a pytree of them for an input that is a pytree).
      act_out: representation, or pytree of them, of the output.
    """

    group: Any
    act_in: tuple
    act_out: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One public function and what it promises.

    Attributes:
      name: `room.function`, with a variant in brackets where there are several.
      function: pure function `(params, *inputs) -> pytree`.
      make: `(key, dtype name) -> (params, inputs)`: generic values, shapes that do not depend on the key, floating
        leaves of the dtype asked for.
      laws: the symmetries; at least one, or the reason why there is none under "equivariance" in `exempt`.
      degenerate: functions `inputs -> inputs` to hard cases (coincident points, empty sets, equal values); zeros and
        ones are always tried.
      padding: `inputs -> (padding, output_padding)` as `core.checks.assert_padding_invariant` takes them, or None for
        a function without masks.
      dtypes: dtypes that the function keeps.
      leading_axes: whether the function itself takes extra leading axes (they are then compared with a loop as well).
      check_vma: whether `shard_map` checks which values vary over devices; False only where a dependency's loops
        fail that check, as the docstring of the function must then say.
      slow: whether its contracts run in the slow lane only: a variant of a large model whose other variant is in the
        fast one.
      exempt: contract name -> why it does not apply.
    """

    name: str
    function: Callable
    make: Callable
    laws: tuple[Law, ...] = ()
    degenerate: tuple[Callable, ...] = ()
    padding: Callable | None = None
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    leading_axes: bool = False
    check_vma: bool = True
    slow: bool = False
    exempt: Mapping[str, str] = dataclasses.field(default_factory=dict)
