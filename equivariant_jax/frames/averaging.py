r"""Frame averaging: exact invariance and equivariance of any function, by averaging over a few group elements.

A frame F maps an input X to a finite set of group elements that moves with it, `F(rho1(g) X) == g F(X)`. With it

    invariant      <phi>(X) = 1/|F(X)| sum_{g in F(X)} phi(rho1(g)^-1 X)
    equivariant    <phi>(X) = 1/|F(X)| sum_{g in F(X)} rho2(g) phi(rho1(g)^-1 X)

Law: `<phi>(rho1(h) X) == rho2(h) <phi>(X)` for every h in G and every phi. What phi commutes with (a permutation of the
points, say), the average commutes with as well if the frame does not change under it.

`pca_frames` makes frames of point clouds, `sorted_frames` and `laplacian_frames` those of sets and graphs; anything
that has the four members of `FrameSet` will do.

References: Puny, Atzmon, Ben-Hamu, Misra, Grover, Smith, Lipman 2021, arXiv:2110.03336, section 2; Duval et al. 2023,
arXiv:2305.05577 (one random element).
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from equivariant_jax.core.typing import Array, PRNGKey, PyTree
from equivariant_jax.frames.pca import Group, pca_frames

__all__ = ["FrameAveraged", "FrameSet", "frame_average"]


class FrameSet(Protocol):
    """What `frame_average` needs of frames: elements with weights, and their action on arrays of a named kind."""

    @property
    def weight(self) -> Array:
        """What each element counts, shape `[..., F]`; the sum over elements is one."""
        ...

    def pull(self, kind: Any, x: Array) -> Array:
        """Moves `[..., *rest]` by the inverse of every element, to `[..., F, *rest]`."""
        ...

    def push(self, kind: Any, y: Array) -> Array:
        """Moves each `[..., F, *rest]` by its own element; keeps the shape."""
        ...

    def pick(self, key: PRNGKey) -> "FrameSet":
        """Keeps one uniformly drawn element, F = 1, independently for each leading index `[...]`."""
        ...


def _matched(kinds: Any, tree: PyTree, apply: Callable[[Any, Array], Array]) -> PyTree:
    """Applies `apply(kind, leaf)`, where `kinds` is one kind for all leaves or a tree of them above `tree`."""
    if isinstance(kinds, str) or callable(kinds):
        return jax.tree.map(lambda leaf: apply(kinds, leaf), tree)
    return jax.tree.map(lambda kind, part: _matched(kind, part, apply), kinds, tree)


def frame_average(
    function: Callable[..., PyTree],
    frames: FrameSet,
    *,
    in_types: tuple[Any, ...],
    out_types: Any = "scalar",
    reduce: Literal["mean", "sample"] = "mean",
    key: PRNGKey | None = None,
    vectorized: bool = False,
    sequential: bool = False,
) -> Callable[..., PyTree]:
    r"""Makes a symmetric function of any: `sum_g w_g rho2(g) phi(rho1(g)^-1 X)` over the elements g of the frames.

    Args:
      function: pure function `phi(*inputs) -> pytree of floating arrays`, with no symmetry of its own. It sees one item
        in one frame, without leading axes; it may use random keys and parameters that it closes over.
      frames: from `pca_frames` or `sorted_frames`, of leading shape `[...]`, made of the same inputs.
      in_types: static; the kind of each input (see `Frames` and `SortedFrames`). All leaves of an input that is a
        pytree have its kind. "scalar" inputs are passed on as they are.
      out_types: static; the kind of the output, or a tree of kinds for an output that is a tree.
      reduce: static; "mean" evaluates all elements; "sample" one element drawn uniformly, at the cost of one
        evaluation: unbiased, and symmetric in distribution only.
      key: typed random key, for "sample"; each leading index draws its own element.
      vectorized: static; True calls `function` once with all elements on an axis in front of an item's, `[..., F, *]`,
        instead of mapping it over them: for functions with statistics of a batch.
      sequential: static; True evaluates the elements one after another, in the memory of one. Slower on an accelerator
        that one element does not fill, faster on a CPU whose cache all of them together do not fit. With `vectorized`,
        `function` is given one element on the axis in front of an item's, and statistics are those of one element.

    Returns:
      Function of inputs `[..., *]` (leaves; leading axes as those of the frames) to outputs `[..., *]`.

    Raises:
      ValueError: if an option or a kind is unknown, or numbers or shapes of inputs do not fit.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (5, 3))
      >>> turn = jnp.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
      >>> def norms(x):
      ...     return frame_average(lambda x: jnp.tanh(x @ x[0]), pca_frames(x), in_types=("position",))(x)
      >>> bool(jnp.allclose(norms(x), norms(x @ turn.T + 1), atol=1e-5))
      True
    """
    if reduce not in ("mean", "sample") or (reduce == "sample" and key is None):
        raise ValueError(f'reduce: got {reduce!r} with key={key}; expected "mean", or "sample" with a random key.')
    chosen = frames.pick(key) if reduce == "sample" and key is not None else frames
    weight = chosen.weight
    lead = weight.ndim - 1

    def averaged(*inputs: PyTree) -> PyTree:
        if len(inputs) != len(in_types):
            raise ValueError(
                f"got {len(inputs)} inputs and {len(in_types)} in_types; expected one kind for each input."
            )

        def pulled(kind: Any, x: PyTree) -> PyTree:
            if kind == "scalar" and not vectorized:
                return x
            return _matched(kind, x, lambda k, leaf: chosen.pull(k, jnp.asarray(leaf)))

        moved = [pulled(kind, x) for kind, x in zip(in_types, inputs, strict=True)]
        # Inputs that all elements share have no axis for them.
        axes = tuple(None if kind == "scalar" and not vectorized else 0 for kind in in_types)
        if sequential:
            return _matched(out_types, one_by_one(moved, axes), reduced)
        run = function
        if not vectorized:
            run = jax.vmap(run, in_axes=axes, axis_size=weight.shape[-1])
            for _ in range(lead):
                run = jax.vmap(run)
        return _matched(out_types, run(*moved), reduced)

    def one_by_one(moved: list[PyTree], axes: tuple[int | None, ...]) -> PyTree:
        run = function
        if not vectorized:
            for _ in range(lead):
                run = jax.vmap(run)

        def element(index: Array) -> PyTree:
            def cut(axis: int | None, x: PyTree) -> PyTree:
                if axis is None:
                    return x
                return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, lead, keepdims=vectorized), x)

            y = run(*(cut(axis, x) for axis, x in zip(axes, moved, strict=True)))
            return jax.tree.map(lambda leaf: jnp.squeeze(leaf, lead), y) if vectorized else y

        stacked = lax.map(element, jnp.arange(weight.shape[-1], dtype=jnp.int32))
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, lead), stacked)

    def reduced(kind: Any, y: Array) -> Array:
        if not jnp.issubdtype(y.dtype, jnp.floating):
            raise ValueError(f"function returned {y.dtype}; expected floating point, which can be averaged.")
        if y.shape[: lead + 1] != weight.shape:
            raise ValueError(
                f"function returned shape {y.shape}; expected {weight.shape} in front, one for each element."
            )
        y = chosen.push(kind, y)
        wide = y if y.dtype == jnp.float64 else y.astype(jnp.float32)
        w = weight.astype(wide.dtype).reshape(weight.shape + (1,) * (y.ndim - lead - 1))
        return jnp.sum(wide * w, axis=lead).astype(y.dtype)

    return averaged


class FrameAveraged(nn.Module):
    """Linen module: the frame average of any module over PCA frames of its first input.

    Attributes:
      module: called as `module(*inputs)` with arrays `[..., F, *]`; it must accept leading axes.
      in_types: kinds of the inputs; the first is "position".
      out_types: kind of the output, or a tree of kinds.
      group: "E", "SE", "O" or "SO".
      stop_gradient: whether frames are constants.
    """

    module: nn.Module
    in_types: tuple[Any, ...] = ("position",)
    out_types: Any = "scalar"
    group: Group = "E"
    stop_gradient: bool = False

    @nn.compact
    def __call__(self, *inputs: Array, mask: Array | None = None, key: PRNGKey | None = None) -> PyTree:
        """Averages the module's output.

        Args:
          *inputs: the first holds positions, shape `[..., n, d]`.
          mask: True where a point is real, shape `[..., n]`.
          key: draws one element for each cloud instead of averaging over all; None averages.

        Returns:
          Outputs, leaves of shape `[..., *]`.
        """
        frames = pca_frames(inputs[0], mask, group=self.group, stop_gradient=self.stop_gradient)
        average = frame_average(
            self.module, frames, in_types=self.in_types, out_types=self.out_types,
            reduce="mean" if key is None else "sample", key=key, vectorized=True,
        )  # fmt: skip
        return average(*inputs)
