r"""Checks to point at any model: is it equivariant, invariant, blind to padding, traced once?

A function $f$ is equivariant if $f(g \cdot x) = g \cdot f(x)$ for every element g of a group. `equivariance_error`
measures how far a function is from that, in units that can be judged: the largest deviation over sampled elements,
relative to the size of the output, beside the level that rounding alone would explain. The `assert_*` functions turn
the number into a test whose failure names the worst group element.

    from equivariant_jax.core import checks, groups, representations as rep

    report = checks.equivariance_error(
        model,                        # any function of arrays
        groups.Orthogonal(3),
        (rep.Vector(),),              # how g acts on each input
        rep.Trivial(),                # how g acts on the output
        key,
        (positions,),
    )
    print(report)                     # error 3e-07 (rounding 2e-07) over 8 elements

A check that cannot fail is worse than none, so these also refuse what would pass for the wrong reason: group elements
that do not move the input, outputs that are all zero or do not depend on the input, and non-finite numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equivariant_jax.core.representations import Trivial
from equivariant_jax.core.typing import PRNGKey, PyTree

__all__ = [
    "EquivarianceReport",
    "assert_equivariant",
    "assert_invariant",
    "assert_one_trace",
    "assert_padding_invariant",
    "equivariance_error",
]

# How many times the estimated rounding level an error may be before it counts as a broken symmetry. Rounding inside a
# deep network adds up over its layers, while the estimate perturbs the input only; real violations are 1e4 and more.
ROUNDING_FACTOR = 64.0


class EquivarianceReport(NamedTuple):
    """What `equivariance_error` found.

    Attributes:
      error: largest deviation over elements, relative to the largest output entry (of that output leaf).
      rounding: relative deviation that rounding explains: the machine epsilon of the outputs' dtype plus the response
        of f to input perturbations of one epsilon.
      element: the group element with the largest deviation.
      leaf: path of the output leaf with the largest deviation.
      moved: largest relative change of an input by an element; zero if the group moved nothing.
      response: largest relative change of an output when the inputs change at random by their own size; zero if the
        function is constant.
      num_samples: how many elements were tried.
    """

    error: float
    rounding: float
    element: Any
    leaf: str
    moved: float
    response: float
    num_samples: int

    def __str__(self) -> str:
        """One line for a log."""
        return f"error {self.error:.1e} (rounding {self.rounding:.1e}) over {self.num_samples} elements"


def _as_tuple(act_in: Any, inputs: tuple) -> tuple:
    acts = tuple(act_in) if isinstance(act_in, list | tuple) else (act_in,)
    if len(acts) != len(inputs):
        raise ValueError(
            f"got {len(acts)} input representations for {len(inputs)} inputs; expected one for each (Trivial() for an "
            "input that the group leaves alone)."
        )
    return acts


def _act(representation: Any, g: Any, tree: PyTree) -> PyTree:
    """Applies one representation to every leaf, or a tree of them leaf by leaf (a prefix of the data's tree)."""
    if callable(representation):
        return jax.tree.map(lambda x: representation(g, x), tree)
    return jax.tree.map(lambda rep, sub: _act(rep, g, sub), representation, tree, is_leaf=callable)


def _relative(a: PyTree, b: PyTree) -> tuple[np.ndarray, list[str]]:
    """Per leaf: largest difference over largest magnitude of `b` (exact comparison for integers and booleans)."""
    errors, names = [], []
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        if x.shape != y.shape:
            raise ValueError(
                f"the two sides have shapes {x.shape} and {y.shape} at {_name(path)}; expected equal ones."
            )
        x, y = np.asarray(x), np.asarray(y)
        if x.size == 0:
            errors.append(0.0)
        elif jnp.issubdtype(x.dtype, jnp.inexact):
            # Half types of ml_dtypes compute in float64 here; the difference of two roundings is what is measured.
            wide = np.complex128 if np.iscomplexobj(x) else np.float64
            x, y = x.astype(wide), y.astype(wide)
            scale = max(np.abs(y).max(), np.abs(x).max())
            gap = np.abs(x - y).max()
            # Written so that a NaN or an infinity on either side comes out as NaN, never as "no error".
            errors.append(0.0 if scale == 0 else float(gap / scale) if np.isfinite(scale) else float("nan"))
        else:
            errors.append(float(np.any(x != y)))
        names.append(_name(path))
    return np.asarray(errors), names


def _name(path) -> str:
    return "output" + jax.tree_util.keystr(path)


def _perturb(key: PRNGKey, tree: PyTree, *, size: float | None) -> PyTree:
    """Adds noise of `size` times a leaf's own scale to floating leaves; None means one machine epsilon."""
    leaves, structure = jax.tree.flatten(tree)
    out = []
    for k, x in zip(jax.random.split(key, max(len(leaves), 1)), leaves, strict=False):
        if jnp.issubdtype(jnp.result_type(x), jnp.floating):
            x = jnp.asarray(x)
            eps = float(jnp.finfo(x.dtype).eps) if size is None else size
            scale = eps * jnp.max(jnp.abs(x), initial=0.0)
            x = x + scale.astype(x.dtype) * jax.random.normal(k, x.shape, x.dtype)
        out.append(x)
    return jax.tree.unflatten(structure, out)


def equivariance_error(
    f: Callable[..., PyTree],
    group: Any,
    act_in: Any,
    act_out: Any,
    key: PRNGKey,
    inputs: Sequence[PyTree],
    *,
    num_samples: int = 8,
    jit: bool = True,
) -> EquivarianceReport:
    r"""Measures $\max_g |f(g \cdot x) - g \cdot f(x)| / \max |f(x)|$ over random elements of a group.

    Args:
      f: function of one or more inputs (pytrees of arrays) that returns a pytree of arrays; close over parameters.
      group: a group of `core.groups`, or any object with `sample(key)`.
      act_in: how an element acts on each input: a list or tuple of representations, one for each input (or one
        representation if there is one input). A representation is called as `rep(g, array)` on every leaf; a pytree
        of representations acts leaf by leaf.
      act_out: representation, or pytree of representations, of the output.
      key: typed random key.
      inputs: tuple of inputs; use generic values, since a symmetric input hides a broken symmetry.
      num_samples: static number of sampled elements.
      jit: static; set False for functions that cannot be compiled.

    Returns:
      An `EquivarianceReport`.

    Raises:
      ValueError: if the numbers of inputs and representations differ, or shapes of the two sides do.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from equivariant_jax.core import groups, representations as rep
      >>> x = jax.random.normal(jax.random.key(1), (5, 3))
      >>> def lengths(x):
      ...     return jnp.sum(x**2, axis=-1)
      >>> report = equivariance_error(
      ...     lengths, groups.Orthogonal(3), rep.Vector(), rep.Trivial(), jax.random.key(0), (x,)
      ... )
      >>> report.error < 1e-5, report.moved > 0.1
      (True, True)
    """
    inputs = tuple(inputs)
    acts = _as_tuple(act_in, inputs)
    compiled = jax.jit(f) if jit else f

    def act_on_inputs(g):
        return tuple(_act(rep, g, x) for rep, x in zip(acts, inputs, strict=True))

    sample_key, *noise_keys = jax.random.split(key, 5)
    reference = compiled(*inputs)
    worst = (-1.0, None, "output")
    moved = 0.0
    for k in jax.random.split(sample_key, num_samples):
        g = group.sample(k)
        turned = act_on_inputs(g)
        errors, names = _relative(compiled(*turned), _act(act_out, g, reference))
        i = int(np.argmax(np.where(np.isnan(errors), np.inf, errors))) if len(errors) else 0
        if len(errors) and not np.isnan(worst[0]) and not errors[i] <= worst[0]:
            worst = (float(errors[i]), g, names[i])
        moved = max([moved, *_relative(turned, inputs)[0]])

    epsilons = [float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(reference) if _floating(x)]
    rounding = max(epsilons, default=0.0)
    for k in noise_keys[:3]:
        errors, _ = _relative(compiled(*_perturb(k, inputs, size=None)), reference)
        rounding = max([rounding, *errors[np.isfinite(errors)]])
    responses, _ = _relative(compiled(*_perturb(noise_keys[3], inputs, size=1.0)), reference)
    response = float(np.nanmax(responses, initial=0.0))
    error, element, leaf = worst
    return EquivarianceReport(error, rounding, element, leaf, float(moved), response, num_samples)


def _floating(x) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def assert_equivariant(
    f: Callable[..., PyTree],
    group: Any,
    act_in: Any,
    act_out: Any,
    key: PRNGKey,
    inputs: Sequence[PyTree],
    *,
    tolerance: float | None = None,
    num_samples: int = 8,
    jit: bool = True,
) -> EquivarianceReport:
    """Fails unless `f` commutes with the group up to rounding.

    Args:
      f: see `equivariance_error`.
      group: see `equivariance_error`.
      act_in: see `equivariance_error`.
      act_out: see `equivariance_error`.
      key: typed random key.
      inputs: tuple of inputs, generic values.
      tolerance: largest relative error allowed; default 64 times the rounding level that was estimated.
      num_samples: number of sampled elements.
      jit: set False for functions that cannot be compiled.

    Returns:
      The `EquivarianceReport` of the check that passed.

    Raises:
      AssertionError: if the error is larger (the message names the worst element and output leaf) or not finite, if no
        element moved any input, or if the output does not depend on the inputs.
      ValueError: see `equivariance_error`.

    Example:
      >>> import jax
      >>> from equivariant_jax.core import groups, representations as rep
      >>> x = jax.random.normal(jax.random.key(1), (4, 3))
      >>> act = rep.Permuted((0,))
      >>> _ = assert_equivariant(lambda x: x - x.mean(0), groups.Symmetric(4), act, act, jax.random.key(0), (x,))
      >>> assert_equivariant(lambda x: x[::2], groups.Symmetric(4), act, rep.Trivial(), jax.random.key(0), (x,))
      Traceback (most recent call last):
      ...
      AssertionError: not equivariant under Symmetric(n=4): ...
    """
    report = equivariance_error(f, group, act_in, act_out, key, inputs, num_samples=num_samples, jit=jit)
    limit = ROUNDING_FACTOR * report.rounding if tolerance is None else tolerance
    if not np.isfinite(report.error):
        raise AssertionError(f"{report.leaf} is not finite at the group element {_show(report.element)} of {group}.")
    if report.moved == 0.0:
        raise AssertionError(
            f"no sampled element of {group} moved any input, so the check would pass for any function; give the inputs "
            "a representation that acts, and values that are not symmetric themselves."
        )
    if report.response == 0.0:
        raise AssertionError("the output does not change when the inputs do, so the check would pass for any group.")
    if report.error > limit:
        raise AssertionError(
            f"not equivariant under {group}: relative error {report.error:.2e} at {report.leaf}, allowed {limit:.2e} "
            f"(rounding level {report.rounding:.2e}, {num_samples} elements). Worst group element:\n"
            f"{_show(report.element)}"
        )
    return report


def _show(element: Any) -> str:
    return "\n".join(f"{jax.tree_util.keystr(p) or 'g'} = {x}" for p, x in jax.tree_util.tree_leaves_with_path(element))


def assert_invariant(
    f: Callable[..., PyTree],
    group: Any,
    act_in: Any,
    key: PRNGKey,
    inputs: Sequence[PyTree],
    *,
    tolerance: float | None = None,
    num_samples: int = 8,
    jit: bool = True,
) -> EquivarianceReport:
    """Fails unless the group leaves the output of `f` unchanged, up to rounding.

    Args:
      f: see `equivariance_error`.
      group: see `equivariance_error`.
      act_in: see `equivariance_error`.
      key: typed random key.
      inputs: tuple of pytrees of arrays of any shape, generic values.
      tolerance: largest relative error allowed; default 64 times the rounding level that was estimated.
      num_samples: number of sampled elements.
      jit: set False for functions that cannot be compiled.

    Returns:
      The `EquivarianceReport` of the check that passed.

    Raises:
      AssertionError: see `assert_equivariant`.

    Example:
      >>> import jax
      >>> from equivariant_jax.core import groups, representations as rep
      >>> x = jax.random.normal(jax.random.key(1), (8, 8))
      >>> shifts = groups.TorusShifts((8, 8))
      >>> _ = assert_invariant(lambda x: (x**3).sum(), shifts, rep.Shifted((0, 1)), jax.random.key(0), (x,))
    """
    return assert_equivariant(
        f, group, act_in, Trivial(), key, inputs, tolerance=tolerance, num_samples=num_samples, jit=jit
    )


def assert_padding_invariant(
    f: Callable[..., PyTree],
    inputs: Sequence[PyTree],
    padding: Sequence[PyTree],
    key: PRNGKey,
    *,
    output_padding: PyTree | None = None,
    fill: float = 1e3,
    gradients: bool = True,
) -> None:
    """Fails if what stands in padding reaches a real output or a gradient.

    The padded entries are overwritten with random numbers of size `fill`, with zeros, and with ones of the type's
    smallest magnitude; real outputs must not change by a single bit, nor the gradient with respect to real entries,
    and the gradient with respect to padded entries must be exactly zero and finite.

    Args:
      f: function of `inputs`, which include the mask or graph that tells it what is real.
      inputs: tuple of pytrees of arrays.
      padding: for each input either None (no padding in it, or not to be touched, such as the mask itself) or a pytree
        of bool arrays of the structure of the input, broadcastable to its leaves after trailing axes are added, True
        where an entry is padding.
      key: typed random key.
      output_padding: bool array (or pytree of them, matching the output), True where an output entry is padding and
        may change; default: all outputs are real.
      fill: size of the garbage, a float.
      gradients: also compare the gradients of the sum of squares of real outputs.

    Raises:
      AssertionError: if an output or a gradient depends on padding; the message names it and the size of the leak.
      ValueError: if `padding` does not have one entry for each input, or marks nothing.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x, mask = jnp.arange(4.0), jnp.array([True, True, True, False])
      >>> def mean(x, mask):
      ...     return jnp.sum(jnp.where(mask, x, 0.0)) / mask.sum()
      >>> assert_padding_invariant(mean, (x, mask), (~mask, None), jax.random.key(0))
    """
    inputs = tuple(inputs)
    if len(padding) != len(inputs):
        raise ValueError(f"got {len(padding)} padding trees for {len(inputs)} inputs; expected one (or None) for each.")
    leaves = [(i, p) for i, tree in enumerate(padding) if tree is not None for p in jax.tree.leaves(tree)]
    if not any(bool(np.any(np.asarray(p))) for _, p in leaves):
        raise ValueError("padding marks no entry of any input; expected bool arrays that are True at padded entries.")

    def overwrite(values):
        out = []
        for k, x, p in zip(jax.random.split(key, len(inputs)), inputs, padding, strict=True):
            out.append(x if p is None else _overwrite(x, p, k, values))
        return tuple(out)

    def real_part(out):
        if output_padding is None:
            return out
        return _overwrite(out, output_padding, key, "zero")

    def loss(*args):
        return sum(jnp.sum(jnp.square(jnp.abs(x))) for x in jax.tree.leaves(real_part(f(*args))) if _inexact(x))

    run = jax.jit(lambda *args: real_part(f(*args)))
    diff = tuple(i for i, x in enumerate(inputs) if all(_floating(jnp.asarray(v)) for v in jax.tree.leaves(x)))
    slope = jax.jit(jax.grad(loss, argnums=diff)) if gradients and diff else None
    want, want_slope = None, None
    for values in ("zero", "random", "tiny"):
        args = overwrite((values, fill) if values == "random" else values)
        got = run(*args)
        got_slope = slope(*args) if slope else ()
        if want is None:
            want, want_slope = got, got_slope
        _same(want, got, f"the output changed when padding was overwritten with {values} values")
        for i, a, b in zip(diff, want_slope or (), got_slope, strict=False):
            name = f"the gradient with respect to input {i}"
            _same(a, b, f"{name} changed when padding was overwritten with {values} values")
            if padding[i] is not None:
                zeros = _overwrite(b, jax.tree.map(np.logical_not, padding[i]), key, "zero")
                _same(jax.tree.map(jnp.zeros_like, zeros), zeros, f"{name} is not zero at padding ({values} values)")


def _inexact(x) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _overwrite(tree: PyTree, padding: PyTree, key: PRNGKey, values: Any) -> PyTree:
    def one(k, x, p):
        x = jnp.asarray(x)
        p = jnp.broadcast_to(jnp.asarray(p).reshape(p.shape + (1,) * (x.ndim - p.ndim)), x.shape)
        if isinstance(values, tuple) and _floating(x):
            new = (values[1] * jax.random.normal(k, x.shape, jnp.float32)).astype(x.dtype)
        elif values == "tiny" and _floating(x):
            new = jnp.full_like(x, jnp.finfo(x.dtype).tiny)
        elif not _inexact(x) and values != "zero":
            return x  # integers index tables; garbage there is a crash or a clamp, not a leak
        else:
            new = jnp.zeros_like(x)
        return jnp.where(p, new, x)

    leaves, structure = jax.tree.flatten(tree)
    marks = structure.flatten_up_to(padding) if not hasattr(padding, "shape") else [padding] * len(leaves)
    keys = jax.random.split(key, max(len(leaves), 1))
    return jax.tree.unflatten(structure, [one(k, x, p) for k, x, p in zip(keys, leaves, marks, strict=False)])


def _same(want: PyTree, got: PyTree, message: str) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if not np.array_equal(a, b):
            with np.errstate(invalid="ignore"):
                gap = np.nanmax(np.abs(a.astype(np.float64) - b.astype(np.float64)), initial=0.0)
            bad = int(np.sum(~np.isfinite(b.astype(np.float64)))) if jnp.issubdtype(b.dtype, jnp.floating) else 0
            raise AssertionError(
                f"{message}: leaf '{jax.tree_util.keystr(path) or 'value'}' of shape {a.shape} differs by up to "
                f"{gap:.2e}, {bad} entries not finite. Cut padding with jnp.where before the operation that mixes rows."
            )


def assert_one_trace(f: Callable[..., PyTree], *calls: Sequence[PyTree], static_argnums: tuple[int, ...] = ()) -> None:
    """Fails if calls that should share one compilation trace `f` more than once.

    Args:
      f: function to be compiled; not yet wrapped in `jit`.
      *calls: two or more tuples of arguments, such as two batches padded to one budget.
      static_argnums: positions of static arguments.

    Raises:
      AssertionError: if `f` was traced more than once; the message names the first argument that differs and how.
      ValueError: if there are fewer than two calls.

    Example:
      >>> import jax.numpy as jnp
      >>> assert_one_trace(lambda x: x + 1, (jnp.zeros(3),), (jnp.ones(3),))
      >>> assert_one_trace(lambda x: x + 1, (jnp.zeros(3),), (jnp.ones(4),))
      Traceback (most recent call last):
      ...
      AssertionError: traced 2 times for 2 calls; argument [0] was float32[3] in call 0 and float32[4] in call 1.
    """
    if len(calls) < 2:
        raise ValueError(f"got {len(calls)} calls; expected at least two tuples of arguments to compare.")
    count = 0

    def counted(*args):
        nonlocal count
        count += 1
        return f(*args)

    compiled = jax.jit(counted, static_argnums=static_argnums)
    seen = 0
    for i, args in enumerate(calls):
        jax.block_until_ready(compiled(*args))
        if i and count > seen:
            raise AssertionError(f"traced {count} times for {i + 1} calls; {_difference(calls[0], args, i)}.")
        seen = count


def _difference(first: Sequence[PyTree], other: Sequence[PyTree], call: int) -> str:
    a, b = jax.tree_util.tree_leaves_with_path(tuple(first)), jax.tree_util.tree_leaves_with_path(tuple(other))
    if jax.tree.structure(tuple(first)) != jax.tree.structure(tuple(other)):
        return f"the arguments of call {call} have another tree structure than those of call 0"
    for (path, x), (_, y) in zip(a, b, strict=True):
        s, t = _describe(x), _describe(y)
        if s != t:
            return f"argument {jax.tree_util.keystr(path)} was {s} in call 0 and {t} in call {call}"
    return f"all arguments of call {call} look like those of call 0; a static argument or a captured value changed"


def _describe(x: Any) -> str:
    try:
        aval = jax.typeof(x)
    except TypeError:
        return f"{type(x).__name__} {x!r}"
    return f"weak {aval.str_short()}" if getattr(aval, "weak_type", False) else aval.str_short()
