"""What every run with a potential needs around it: loss, predictions, errors, and files that outlive the run."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from equivariant_jax import training
from equivariant_jax.core.graphs import GraphBudget, batch, graph_mask, node_mask, pack, pad, plan_budget
from equivariant_jax.data import graph_sizes
from equivariant_jax.euclidean.interatomic import PotentialConfig, energy_and_forces, potential_init
from equivariant_jax.training.export import export_function, save_exported
from experiments.runs import count_parameters

__all__ = [
    "errors",
    "export_potential",
    "load_potential",
    "make_loss",
    "num_parameters",
    "padded",
    "predict",
    "predict_graphs",
    "save_potential",
    "sizes",
]

# Graphs of `data.to_graph`; the fields of jraph.GraphsTuple are typed too loosely to be indexed.
Graphs = Sequence[Any]


def sizes(graphs: Graphs) -> tuple[list[int], list[int]]:
    """Lists nodes and edges of each graph, as `core.graphs` takes them."""
    n_node, n_edge = graph_sizes(graphs)
    return n_node.tolist(), n_edge.tolist()


def num_parameters(config: PotentialConfig) -> int:
    """Counts the parameters of a potential."""
    return count_parameters(functools.partial(potential_init, config=config))


def make_loss(potential: PotentialConfig, *, loss: str = "mse", huber_delta: float = 0.05) -> Any:
    """Makes the loss over a padded batch: terms `energy_loss` (per graph) and `forces_loss` (per component).

    Args:
      potential: configuration of the model.
      loss: "mse", or "huber" (quadratic below `huber_delta`, linear above).
      huber_delta: in eV per atom and eV/angstrom.

    Returns:
      A loss function as `training.make_train_step` takes it; it also reports the errors in eV and eV/angstrom.
    """

    def penalty(error):
        if loss == "mse":
            return error * error
        delta = huber_delta
        size = jnp.abs(error)
        return jnp.where(size < delta, 0.5 * error * error, delta * (size - 0.5 * delta))

    def loss_fn(params, graph, *, key, model_state):
        out = energy_and_forces(params, graph, potential)
        graphs, nodes = graph_mask(graph), node_mask(graph)
        energy_error = out.interaction_energy - graph.globals["energy"]
        force_error = out.forces - graph.nodes["forces"]
        atoms = jnp.maximum(graph.n_node, 1).astype(energy_error.dtype)
        return training.LossOutput(
            {
                "energy_loss": training.Mean.of(penalty(energy_error / atoms), graphs),
                "forces_loss": training.Mean.of(penalty(force_error), nodes),
            },
            {
                "energy_rmse": training.RootMean.of(energy_error**2, graphs),
                "forces_rmse": training.RootMean.of(force_error**2, nodes),
                "forces_mae": training.Mean.of(jnp.abs(force_error), nodes),
            },
        )

    return loss_fn


def padded(graphs: Graphs, budget: GraphBudget) -> list[jraph.GraphsTuple]:
    """Packs and pads graphs into batches of one size."""
    packs = pack(*sizes(graphs), budget)
    return [pad(batch([graphs[i] for i in members]), budget) for members in packs]


def predict_graphs(model: Callable, params: Any, graphs: Graphs, *, energy: str) -> list[tuple[float, np.ndarray]]:
    """Predicts energy and forces of graphs in padded batches of one size.

    Args:
      model: `(params, padded batch) -> named tuple` with energies `[graphs]` and `forces` `[nodes, 3]`.
      params: of the model.
      graphs: of any sizes.
      energy: name of the energies.

    Returns:
      Energy and forces `[n, 3]` of each graph, in the order given.
    """
    budget = plan_budget(*sizes(graphs), batch_size=16, slack=2.0)
    compiled = jax.jit(model)
    found: dict[int, tuple[float, np.ndarray]] = {}
    for members in pack(*sizes(graphs), budget):
        out = jax.device_get(compiled(params, pad(batch([graphs[i] for i in members]), budget)))
        ends = np.cumsum([len(graphs[i].nodes["species"]) for i in members])
        parts = np.split(out.forces[: ends[-1]], ends[:-1])
        found |= {i: (float(e), forces) for i, e, forces in zip(members, getattr(out, energy), parts, strict=False)}
    return [found[i] for i in range(len(graphs))]


def predict(params, potential: PotentialConfig, graphs: Graphs) -> list[tuple[float, np.ndarray]]:
    """Predicts interaction energy (eV) and forces (`[n, 3]`, eV/angstrom) of each graph, in the order given."""
    model = functools.partial(energy_and_forces, config=potential)
    return predict_graphs(model, params, graphs, energy="interaction_energy")


def errors(predictions: Sequence[tuple[float, np.ndarray]], graphs: Graphs, name: str) -> dict[str, float]:
    """Measures RMSE and MAE in meV and meV/angstrom, keys `name/...`; forces only where the reference has them."""
    energy = 1e3 * np.array([p[0] - float(g.globals["energy"][0]) for p, g in zip(predictions, graphs, strict=True)])
    result = {f"{name}/energy_rmse_meV": np.sqrt(np.mean(energy**2)), f"{name}/energy_mae_meV": np.mean(np.abs(energy))}
    if all("forces" in g.nodes for g in graphs):
        pairs = zip(predictions, graphs, strict=True)
        forces = 1e3 * np.concatenate([(p[1] - g.nodes["forces"]).reshape(-1) for p, g in pairs]).astype(np.float64)
        result[f"{name}/forces_rmse_meV_A"] = np.sqrt(np.mean(forces**2))
        result[f"{name}/forces_mae_meV_A"] = np.mean(np.abs(forces))
    return {key: float(value) for key, value in result.items()}


def save_potential(params, potential: PotentialConfig, path: Path) -> None:
    """Writes parameters and configuration into one npz file for `load_potential`."""
    leaves = {f"parameter_{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(params))}
    np.savez(path, config=json.dumps(dataclasses.asdict(potential)), **leaves)  # type: ignore[arg-type]


def load_potential(workdir: str | Path):
    """Reads the averaged parameters and the configuration of a finished run.

    Args:
      workdir: directory of the run.

    Returns:
      The parameters (pytree of NumPy arrays) and the `PotentialConfig`.

    Raises:
      FileNotFoundError: if the run did not finish there.
    """
    path = Path(workdir) / "potential.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; a finished run of euclidean.molecules writes it.")
    with np.load(path) as arrays:
        written: dict[str, Any] = json.loads(str(arrays["config"]))
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in written.items()}
        potential = PotentialConfig(**fields)
        shapes = jax.eval_shape(lambda: potential_init(jax.random.key(0), potential))
        leaves = [arrays[f"parameter_{i}"] for i in range(len(jax.tree.leaves(shapes)))]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves), potential


def export_potential(params, potential: PotentialConfig, example: Any, path: Path) -> None:
    """Writes `(positions, species, shifts, senders, receivers, n_node, n_edge) -> dict of outputs` for any batch size.

    The sizes of the arrays are free; the last graphs are padding, as `core.graphs.pad` leaves them.
    """

    def model(positions, species, shifts, senders, receivers, n_node, n_edge):
        nodes, edges = {"positions": positions, "species": species}, {"shifts": shifts}
        graph = jraph.GraphsTuple(nodes, edges, receivers, senders, {}, n_node, n_edge)
        return energy_and_forces(params, graph, potential)._asdict()

    arguments = (
        example.nodes["positions"], example.nodes["species"], example.edges["shifts"], example.senders,
        example.receivers, example.n_node, example.n_edge,
    )  # fmt: skip
    dimensions = ("n_node, 3", "n_node", "n_edge, 3", "n_edge", "n_edge", "n_graph", "n_graph")
    save_exported(path, export_function(model, *arguments, dimensions=dimensions))
