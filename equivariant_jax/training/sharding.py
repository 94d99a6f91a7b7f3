"""Meshes, and where each leaf of a pytree lives on them.

One global program sees one mesh with two axes: `data`, over which batches are split, and `fsdp`, over which batches are
split too and parameters may be. Placement of a train state is said by (regex, rule) pairs on leaf paths such as
`params/dense/kernel` or `opt_state/0/mu/dense/kernel`; the first pair that matches wins and no match means replicated.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from equivariant_jax.core.typing import PyTree

__all__ = [
    "BATCH_AXES",
    "Rule",
    "init_sharded",
    "leaf_paths",
    "make_mesh",
    "place_batch",
    "replicated",
    "shard_batch",
    "shardings_for",
]

BATCH_AXES = ("data", "fsdp")
"""Mesh axes over which the leading axis of a batch is split."""

Rule = tuple[str, str | P]
"""A regular expression and `"replicated"`, `"fsdp"` or a `PartitionSpec`."""


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes the mesh `(data, fsdp)` of automatic axes over all devices of all processes.

    Args:
      data: size of the axis that only batches are split over; -1 takes what `fsdp` leaves.
      fsdp: size of the axis that parameters may be split over as well.
      devices: devices to use, default `jax.devices()` (all processes).

    Returns:
      Mesh with axis names `("data", "fsdp")` and `AxisType.Auto`.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices.

    Example:
      >>> mesh = make_mesh(devices=jax.devices()[:1])
      >>> dict(mesh.shape)
      {'data': 1, 'fsdp': 1}
    """
    devices = list(jax.devices() if devices is None else devices)
    if data == -1 and fsdp > 0:
        data = len(devices) // fsdp
    if data < 1 or fsdp < 1 or data * fsdp != len(devices):
        raise ValueError(
            f"A mesh of data={data} times fsdp={fsdp} does not use the {len(devices)} devices given; choose sizes that "
            "multiply to it, or pass fewer devices."
        )
    # Explicit axes, the default since jax 0.9, reject gathers and segment sums over a sharded axis.
    return jax.make_mesh((data, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that keeps a full copy (of any shape) on every device of the mesh."""
    return NamedSharding(mesh, P())


def leaf_paths(tree: PyTree) -> list[str]:
    """Names the leaves of a pytree (any shapes) in flattening order.

    Example:
      >>> leaf_paths({"params": {"dense": {"kernel": 1, "bias": 2}}, "step": 3})
      ['params/dense/bias', 'params/dense/kernel', 'step']
    """
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def _fsdp_spec(shape: tuple[int, ...], mesh: Mesh) -> P:
    size = mesh.shape["fsdp"]
    dimensions = [d for d in range(len(shape)) if shape[d] and shape[d] % size == 0]
    if not dimensions:
        return P()
    largest = max(dimensions, key=lambda d: shape[d])
    return P(*("fsdp" if d == largest else None for d in range(largest + 1)))


def _spec(path: str, shape: tuple[int, ...], rules: Sequence[Rule], mesh: Mesh) -> P:
    rule = next((rule for pattern, rule in rules if re.search(pattern, path)), "replicated")
    if isinstance(rule, P):
        if len(rule) > len(shape):
            raise ValueError(f"The rule {rule} for '{path}' has more axes than the leaf's shape {shape}.")
        for dimension, names in zip(shape, rule, strict=False):
            names = () if names is None else (names,) if isinstance(names, str) else names
            missing = [name for name in names if name not in mesh.shape]
            if missing:
                raise ValueError(
                    f"The rule {rule} for '{path}' names the mesh axis {missing[0]!r}; {dict(mesh.shape)}."
                )
            parts = int(np.prod([mesh.shape[name] for name in names], dtype=np.int64))
            if dimension % parts:
                raise ValueError(
                    f"The rule {rule} splits '{path}' of shape {shape} into {parts} parts along an axis of length "
                    f"{dimension}; expected a multiple. Use the rule 'fsdp', which picks an axis that divides."
                )
        return rule
    if rule == "replicated":
        return P()
    if rule == "fsdp":
        return _fsdp_spec(shape, mesh)
    raise ValueError(f"Unknown rule {rule!r} for '{path}'; expected 'replicated', 'fsdp' or a PartitionSpec.")


def shardings_for(tree: PyTree, rules: Sequence[Rule], mesh: Mesh) -> PyTree:
    """Chooses a sharding for each leaf by (regex, rule) pairs on its path.

    Args:
      tree: pytree of arrays or `jax.ShapeDtypeStruct`s of any shape.
      rules: pairs tried in order with `re.search` on paths like `params/dense/kernel`. The rule is `"replicated"`,
        `"fsdp"` (the longest axis that the mesh axis `fsdp` divides is split; replicated when there is none, as for
        scalars), or a `PartitionSpec`.
      mesh: from `make_mesh`.

    Returns:
      Pytree of `NamedSharding`s with the structure of `tree`.

    Raises:
      ValueError: naming the path, if a rule is unknown or does not fit the leaf's shape.

    Example:
      >>> import jax.numpy as jnp
      >>> mesh = make_mesh(devices=jax.devices()[:1])
      >>> out = shardings_for({"kernel": jnp.ones((2, 8)), "bias": jnp.ones(8)}, [("kernel", "fsdp")], mesh)
      >>> out["kernel"].spec, out["bias"].spec
      (P(None, 'fsdp'), P())
    """
    leaves, structure = jax.tree.flatten(tree)
    paths = leaf_paths(tree)
    specs = [_spec(path, np.shape(leaf), rules, mesh) for path, leaf in zip(paths, leaves, strict=True)]
    return jax.tree.unflatten(structure, [NamedSharding(mesh, spec) for spec in specs])


def init_sharded(make: Callable[..., PyTree], mesh: Mesh | None, rules: Sequence[Rule], *args: Any) -> PyTree:
    """Runs `make(*args)` compiled, so that every leaf is born where the rules put it and never exists in one piece.

    Args:
      make: pure function, e.g. `lambda key: TrainState.create(model.init(key, x)["params"], optimizer, key=key)`.
      mesh: mesh, or None for one device.
      rules: as in `shardings_for`.
      *args: arrays (any shape) passed to `make`.

    Returns:
      What `make` returns, placed.
    """
    if mesh is None:
        return jax.jit(make)(*args)
    return jax.jit(make, out_shardings=shardings_for(jax.eval_shape(make, *args), rules, mesh))(*args)


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Places a host batch on the mesh, split along the leading axis over `data` and `fsdp`.

    With several processes, `batch` is this process's part: leading axes are concatenated in process order to the global
    batch, and leaves without an axis must be equal in all processes; leaves that are global arrays already are left
    alone.

    Args:
      batch: pytree of NumPy or JAX arrays; leaves `[n, ...]` are split, leaves `[]` are copied to every device.
      mesh: from `make_mesh`.

    Returns:
      The same pytree as global `jax.Array`s.

    Raises:
      ValueError: naming the leaf, if `n` is not a multiple of the devices that this process contributes.

    Example:
      >>> mesh = make_mesh(devices=jax.devices()[:1])
      >>> shard_batch({"x": np.ones((4, 3))}, mesh)["x"].sharding.spec
      P(('data', 'fsdp'),)
    """
    split = NamedSharding(mesh, P(BATCH_AXES))
    local_devices = len(mesh.local_devices)
    several = jax.process_count() > 1

    def place(path, leaf):
        shape = np.shape(leaf)
        if shape and shape[0] % local_devices:
            raise ValueError(
                f"Batch leaf '{jax.tree_util.keystr(path, simple=True, separator='/')}' of shape {shape} cannot be "
                f"split over {local_devices} devices; make the leading axis a multiple, or for a graph batch stack "
                "one padded graph per device (core.graphs.stack) and use per_device=True."
            )
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf
        sharding = split if shape else replicated(mesh)
        if several:
            return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))
        return jax.device_put(leaf, sharding)

    return jax.tree_util.tree_map_with_path(place, batch)


def place_batch(batch: PyTree, mesh: Mesh | None) -> PyTree:
    """Runs `shard_batch` unless there is no mesh or every leaf is on the whole mesh already.

    Args:
      batch: pytree of arrays, leaves `[n, ...]` or `[]`.
      mesh: mesh, or None.

    Returns:
      The same pytree, placed; the batch itself where nothing was to be done.
    """
    if mesh is None:
        return batch
    placed = all(isinstance(x, jax.Array) and len(x.sharding.device_set) == mesh.size for x in jax.tree.leaves(batch))
    return batch if placed else shard_batch(batch, mesh)
