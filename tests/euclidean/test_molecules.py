"""The experiment end to end at its smallest, its baselines, and what it reports."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from equivariant_jax.core.graphs import GraphBudget, batch, pad, plan_budget
from equivariant_jax.data import aminoethanol, write_extxyz
from equivariant_jax.euclidean.interatomic import energy_and_forces, potential_init
from equivariant_jax.training import read_rows
from equivariant_jax.training.export import load_exported
from experiments.euclidean import molecular_models, molecules
from experiments.euclidean.molecular_sets import load_molecules

TINY = dataclasses.replace(
    molecules.PRESETS["ci"], train_size=12, validation_size=4, steps=6, eval_every=3, checkpoint_every=3, channels=4,
    layers=1, lmax=1, radial_hidden=(4,), batch_size=4, warmup_steps=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "frames.xyz"
    frames = [*aminoethanol("train_300K")[:30], *aminoethanol("isolated_atoms")]
    write_extxyz(
        path,
        [
            dataclasses.replace(f, forces=np.zeros((len(f.numbers), 3)) if f.forces is None else f.forces)
            for f in frames
        ],
    )
    return str(path)


def test_run_leaves_everything_behind_and_resumes(tmp_path, small_set):
    config = dataclasses.replace(TINY, dataset=small_set)
    metrics = molecules.run(config, tmp_path)
    assert all(isinstance(value, float) for value in metrics.values())
    assert {"test/forces_mae_meV_A", "test/energy_rmse_meV", "validation/forces_rmse_meV_A"} <= metrics.keys()
    assert np.isfinite(list(metrics.values())).all()
    for name in (
        "metrics.jsonl",
        "metrics.csv",
        "metrics.json",
        "learning_curve.png",
        "force_parity.png",
        "checkpoints",
    ):
        assert (tmp_path / name).exists(), name
    assert {row["split"] for row in read_rows(tmp_path / "metrics.jsonl")} == {"train", "eval"}

    # The exported model runs without the code that made it, on a batch of another size.
    params, potential = molecular_models.load_potential(tmp_path)
    graphs = load_molecules(small_set, config.r_max, train_size=12, validation_size=4).train[:3]
    graph = pad(batch(graphs), GraphBudget(50, 400, 5))
    out = load_exported(tmp_path / "potential.jaxexport")(
        graph.nodes["positions"], graph.nodes["species"], graph.edges["shifts"], graph.senders, graph.receivers,
        graph.n_node, graph.n_edge,
    )  # fmt: skip
    expected = jax.jit(energy_and_forces, static_argnums=2)(params, graph, potential)
    np.testing.assert_allclose(out["forces"], expected.forces, atol=1e-4 * np.abs(expected.forces).max())

    # A finished run resumes to the same numbers; without --resume its checkpoints are an error.
    again = molecules.run(dataclasses.replace(config, resume=True), tmp_path)
    assert again["test/forces_mae_meV_A"] == pytest.approx(metrics["test/forces_mae_meV_A"], rel=1e-6)
    with pytest.raises(ValueError, match="resume"):
        molecules.run(config, tmp_path)


def test_twin_has_at_least_as_many_parameters():
    data = load_molecules("embedded", 5.0, train_size=20, validation_size=4)
    for preset in ("ci", "cpu"):
        config = molecules.PRESETS[preset]
        ours = molecules.potential_config(config, data)
        twin = molecules.potential_config(dataclasses.replace(config, model="invariant"), data)
        assert twin.lmax == twin.hidden_lmax == 0
        assert (
            molecular_models.num_parameters(ours)
            <= molecular_models.num_parameters(twin)
            < 1.5 * molecular_models.num_parameters(ours)
        )


def test_energies_are_counted_from_isolated_atoms(small_set):
    data = load_molecules(small_set, 5.0, validation_size=4)
    assert data.reference == "isolated atoms"
    assert len(data.train) + len(data.validation) + len(data.tests["test"]) == 30
    frame, graph = aminoethanol("train_300K")[0], load_molecules("embedded", 5.0, validation_size=4).train[0]
    by_number = dict(zip(data.species, data.reference_energies, strict=True))
    expected = frame.energy - sum(by_number[int(z)] for z in frame.numbers)
    np.testing.assert_allclose(graph.globals["energy"], [expected], rtol=1e-6)
    np.testing.assert_allclose(data.energy_shift * 11, expected, atol=1.0)


def test_pair_baseline(tmp_path):
    config = dataclasses.replace(molecules.PRESETS["ci"], model="pair", train_size=50)
    metrics = molecules.run(config, tmp_path)
    # Forces of this set have a mean absolute component of about 590 meV/A.
    assert metrics["test_300K/forces_mae_meV_A"] < 300


def test_variants_differ_in_their_products_alone():
    data = load_molecules("embedded", 5.0, train_size=20, validation_size=4)
    plain = molecules.potential_config(TINY, data)
    assert (plain.convolution, plain.contraction) == ("gaunt", "gaunt")
    for variant, products in (("mace_gaunt", ("cg", "gaunt")), ("mace_cg", ("cg", "cg"))):
        config = molecules.potential_config(dataclasses.replace(TINY, **molecules.VARIANTS[variant]), data)
        assert (config.convolution, config.contraction) == products
        assert dataclasses.replace(config, convolution="gaunt", contraction="gaunt") == plain
    paper = molecules.PRESETS["paper"]
    assert (paper.convolution, paper.contraction) == ("cg", "gaunt")


@pytest.mark.slow
def test_clebsch_gordan_twin_trains_and_loads(tmp_path, small_set):
    config = dataclasses.replace(TINY, dataset=small_set, layers=2, steps=3, **molecules.VARIANTS["mace_cg"])
    metrics = molecules.run(config, tmp_path)
    assert np.isfinite(list(metrics.values())).all()
    params, potential = molecular_models.load_potential(tmp_path)
    assert (potential.convolution, potential.contraction) == ("cg", "cg")
    assert params["layer_1"]["mix"].shape[0] > potential.lmax + 1


def test_potentials_saved_without_the_choice_of_products_load(tmp_path):
    data = load_molecules("embedded", 5.0, train_size=4, validation_size=4)
    potential = molecules.potential_config(TINY, data)
    params = jax.jit(potential_init, static_argnums=1)(jax.random.key(0), potential)
    molecular_models.save_potential(params, potential, tmp_path / "potential.npz")
    with np.load(tmp_path / "potential.npz") as arrays:
        leaves = {name: arrays[name] for name in arrays.files}
    written = json.loads(str(leaves["config"]))
    del written["convolution"], written["contraction"]
    np.savez(tmp_path / "potential.npz", **{**leaves, "config": json.dumps(written)})
    loaded, config = molecular_models.load_potential(tmp_path)
    assert config == potential
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.device_get(params))


def test_huber_loss_is_quadratic_then_linear():
    data = load_molecules("embedded", 5.0, train_size=4, validation_size=4)
    potential = molecules.potential_config(TINY, data)
    graph = molecular_models.padded(data.train, plan_budget(*molecular_models.sizes(data.train), batch_size=4))[0]
    params = jax.jit(potential_init, static_argnums=1)(jax.random.key(0), potential)

    def terms(**changes):
        loss = molecular_models.make_loss(potential, **changes)
        return jax.jit(lambda p, g: loss(p, g, key=None, model_state=None).terms)(params, graph)

    squared, wide, narrow = terms(), terms(loss="huber", huber_delta=1e9), terms(loss="huber", huber_delta=1e-6)
    np.testing.assert_allclose(2 * wide["forces_loss"].total, squared["forces_loss"].total, rtol=1e-5)
    assert narrow["forces_loss"].total < 1e-4 * squared["forces_loss"].total


def test_claims_are_judged_by_the_worst_seeds():
    def table(*values):
        return {"test_300K/forces_mae_meV_A": {"values": list(values)}}

    claims = molecules.claims({"gaunt": table(10.0, 12.0), "invariant": table(23.0, 30.0), "pair": table(100.0)})
    assert [(round(c["value"], 2), c["holds"]) for c in claims] == [(1.92, False), (8.33, True)]
    assert molecules.claims({"gaunt": table(10.0)}) == []


def test_products_are_compared_by_means_over_seeds():
    def table(mae, rmse, seconds):
        values = {"test_300K/forces_mae_meV_A": mae, "test_300K/forces_rmse_meV_A": rmse, "train_seconds": seconds}
        return {name: {"values": list(v)} for name, v in values.items()}

    claims = molecules.claims(
        {
            "gaunt": table((9.0, 11.0), (21.0, 21.0), (30.0, 34.0)),
            "mace_gaunt": table((9.0, 9.0), (24.0, 24.0), (90.0, 70.0)),
            "mace_cg": table((10.0, 10.0), (20.0, 20.0), (100.0, 100.0)),
        }
    )
    assert {c["point"] for c in claims} == {"9 real data"}
    assert [(round(c["value"], 6), c["bar"], c["holds"]) for c in claims] == [
        (1.05, 1.1, True), (0.32, 0.76, True), (1.2, 1.1, False), (0.8, 0.76, False),
    ]  # fmt: skip
    without_time = {"gaunt": table((9.0,), (9.0,), (1.0,)), "mace_cg": table((9.0,), (9.0,), (1.0,))}
    del without_time["gaunt"]["train_seconds"]
    assert len(molecules.claims(without_time)) == 1
