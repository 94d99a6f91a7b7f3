"""The S2EF experiment: the generated set, its metrics, and one short run of each variant."""

import dataclasses
import functools

import numpy as np
import pytest

from equivariant_jax.data import to_graph
from equivariant_jax.data.catalysts import write_catalysts
from equivariant_jax.euclidean.equiformer import equiformer_init
from experiments.euclidean import catalysts
from experiments.euclidean.catalysts_sets import SurfaceConfig, load_catalysts, make_surfaces, nearest_neighbours
from experiments.runs import count_parameters

SURFACES = SurfaceConfig(
    metals=("Cu", "Pd", "Pt"), adsorbates=("O", "CO"), held_out=(("Cu", "Pt"),), train_size=16, validation_size=4,
    test_size=4,
)  # fmt: skip
TINY = dataclasses.replace(catalysts.PRESETS["ci"], surfaces=SURFACES, steps=4, eval_every=2, warmup_steps=1)


@pytest.fixture(scope="module")
def parts():
    return make_surfaces(SURFACES)


def test_surfaces_follow_from_the_seed(parts):
    again = make_surfaces(dataclasses.replace(SURFACES, train_size=3))
    for one, other in zip(parts["train"][:3], again["train"], strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)
        assert one.energy == other.energy
    other = make_surfaces(dataclasses.replace(SURFACES, surface_seed=1, train_size=1, validation_size=1, test_size=1))
    assert not np.array_equal(other["train"][0].positions, parts["train"][0].positions)


def test_held_out_pairs_are_in_test_ood_alone(parts):
    for name, structures in parts.items():
        for s in structures:
            metals = {int(z) for z in s.numbers if z > 10}
            assert (metals == {29, 78}) == (name == "test_ood")


def test_energies_and_forces_are_those_of_ase(parts):
    from ase.calculators.emt import EMT

    from equivariant_jax.data import to_ase

    forces = []
    for s in parts["train"][:6]:
        atoms = to_ase(s)
        atoms.calc = EMT()
        np.testing.assert_allclose(atoms.get_potential_energy(), s.energy, atol=1e-9)
        np.testing.assert_allclose(atoms.get_forces(), s.forces, atol=1e-9)
        assert s.arrays["fixed"].sum() == 4
        assert set(s.arrays["tags"][s.arrays["fixed"]]) == {0}
        assert (s.arrays["tags"] == 2).sum() == len(s) - 12
        forces.append(np.abs(s.forces[~s.arrays["fixed"]]).max())
    assert max(forces) > 0.3


def test_nearest_neighbours(parts):
    graph = to_graph(parts["train"][0], 5.0, (6, 8, 29, 46, 78))
    fewer = nearest_neighbours(graph, 5)

    def lengths(g):
        vectors = g.nodes["positions"][g.senders] - g.nodes["positions"][g.receivers] + g.edges["shifts"]
        return np.linalg.norm(vectors, axis=1)

    assert (np.bincount(fewer.receivers) <= 5).all()
    assert (np.diff(fewer.receivers) >= 0).all()
    assert fewer.n_edge[0] == len(fewer.senders) == len(fewer.edges["shifts"])
    for atom in range(len(graph.nodes["species"])):
        expected = np.sort(lengths(graph)[graph.receivers == atom])[:5]
        np.testing.assert_allclose(np.sort(lengths(fewer)[fewer.receivers == atom]), expected)
    assert nearest_neighbours(graph, None) is graph


def test_a_folder_in_the_format_of_oc20(parts, tmp_path):
    write_catalysts(tmp_path / "train.npz", parts["train"])
    write_catalysts(tmp_path / "val_id.npz", parts["test_id"])
    write_catalysts(tmp_path / "val_ood.npz", parts["test_ood"])
    data = load_catalysts(str(tmp_path), 4.0, tmp_path, surfaces=SURFACES, max_neighbours=8, validation_size=2)
    assert sorted(data.tests) == ["val_id", "val_ood"]
    assert (len(data.train), len(data.validation)) == (16, 2)
    assert data.average_neighbours <= 8
    # What least squares leaves of the energies is small beside them, and without a mean.
    energies = np.array([g.globals["energy"][0] for g in data.train])
    assert abs(energies.mean()) < 0.5 * np.std([s.energy for s in parts["train"]])
    (tmp_path / "train.npz").unlink()
    with pytest.raises(ValueError, match="train"):
        load_catalysts(str(tmp_path), 4.0, tmp_path, surfaces=SURFACES)


def test_metrics_on_free_atoms(parts, tmp_path):
    write_catalysts(tmp_path / "train.npz", parts["train"])
    write_catalysts(tmp_path / "val_id.npz", parts["test_id"])
    graphs = load_catalysts(str(tmp_path), 4.0, tmp_path, surfaces=SURFACES).tests["val_id"]
    exact = [(float(g.globals["energy"][0]), g.nodes["forces"].copy()) for g in graphs]
    for (_, forces), graph in zip(exact, graphs, strict=True):
        forces[~graph.nodes["free"]] += 100  # what a model says of the atoms that are held does not count
    perfect = catalysts.errors(exact, graphs, "x")
    assert perfect["x/energy_mae_meV"] == 0
    assert perfect["x/forces_mae_meV_A"] == 0
    assert perfect["x/efwt_percent"] == 100
    np.testing.assert_allclose(perfect["x/forces_cos"], 1, atol=1e-6)
    # One structure of four is off by 25 meV, and its forces are reversed and doubled.
    wrong = [(exact[0][0] + 0.025, -2 * exact[0][1]), *exact[1:]]
    measured = catalysts.errors(wrong, graphs, "x")
    free = [g.nodes["free"].sum() for g in graphs]
    forces = graphs[0].nodes["forces"][graphs[0].nodes["free"]]
    np.testing.assert_allclose(measured["x/energy_mae_meV"], 25 / 4, rtol=1e-4)
    np.testing.assert_allclose(measured["x/forces_mae_meV_A"], 3e3 * np.abs(forces).sum() / (3 * sum(free)), rtol=1e-5)
    np.testing.assert_allclose(measured["x/forces_cos"], 1 - 2 * free[0] / sum(free), rtol=1e-5)
    assert measured["x/efwt_percent"] == 75


def test_the_plain_twin_has_as_many_parameters(parts, tmp_path):
    write_catalysts(tmp_path / "train.npz", parts["train"])
    write_catalysts(tmp_path / "val_id.npz", parts["test_id"])
    data = load_catalysts(str(tmp_path), 4.0, tmp_path, surfaces=SURFACES)
    for preset in ("ci", "cpu", "paper"):
        config = catalysts.PRESETS[preset]
        mixed = catalysts.network_config(config, data)
        plain = catalysts.network_config(dataclasses.replace(config, selfmix=False), data)
        assert mixed.selfmix
        assert not plain.selfmix
        sizes = [count_parameters(functools.partial(equiformer_init, config=network)) for network in (mixed, plain)]
        assert sizes[0] <= sizes[1] <= 1.02 * sizes[0]
        assert dataclasses.replace(plain, selfmix=True, ffn_channels=mixed.ffn_channels) == mixed


@pytest.mark.slow
def test_a_short_run(tmp_path):
    metrics = catalysts.run(TINY, tmp_path / "selfmix" / "seed0")
    assert metrics["steps"] == 4
    for part in ("validation", "test_id", "test_ood"):
        for name in ("energy_mae_meV", "forces_mae_meV_A", "forces_cos", "efwt_percent"):
            assert np.isfinite(metrics[f"{part}/{name}"])
    assert (tmp_path / "surfaces" / "train.npz").exists()
    assert (tmp_path / "selfmix" / "seed0" / "metrics.json").exists()


def test_claims_compare_means_over_seeds():
    def table(energy, forces):
        return {
            "test_id/energy_mae_meV": {"values": energy},
            "test_id/forces_mae_meV_A": {"values": forces},
            "validation/forces_mae_meV_A": {"values": forces},
            "train_seconds": {"values": [1.0]},
        }

    found = catalysts.claims({"selfmix": table([10.0, 12.0], [3.0, 5.0]), "plain": table([12.0, 12.0], [4.0, 3.0])})
    assert [(round(c["value"], 3), c["holds"]) for c in found] == [(0.917, True), (1.143, False)]
    assert all(c["card"] == "gaunt_tensor_product" and c["point"] == "S2EF-style" for c in found)
    assert catalysts.claims({"selfmix": table([1.0], [1.0])}) == []
