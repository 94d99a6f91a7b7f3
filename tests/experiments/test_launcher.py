"""The launcher: finds, suggests, parses, runs seeds and variants, and writes what the report reads."""

import dataclasses
import json
import sys
import types

import pytest

from experiments import launcher, registry, report, results


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the stand-in.

    Attributes:
      rate: a number.
      seed: seed.
      wide: an option.
    """

    rate: float = 1.0
    seed: int = 0
    wide: bool = False


@pytest.fixture
def stand_in(monkeypatch):
    """A tiny experiment under the name `room.toy`."""
    module = types.ModuleType("experiments.room.toy", "A toy.")
    module.CARD = "gaunt_tensor_product"
    module.PRESETS = {"ci": Config(), "cpu": Config(rate=2.0)}
    module.VARIANTS = {"ours": {}, "baseline": {"wide": True}}
    module.calls = []

    def run(config, workdir):
        module.calls.append((config, workdir))
        assert workdir.is_dir()
        return {"error": config.rate * (config.seed + 1) * (3 if config.wide else 1)}

    def claims(metrics):
        value = metrics["ours"]["error"]["mean"]
        return [
            {
                "card": "gaunt_tensor_product",
                "point": 0,
                "statement": "small",
                "bar": 9,
                "value": value,
                "holds": value < 9,
            }
        ]

    module.run, module.claims = run, claims
    monkeypatch.setitem(sys.modules, "experiments.room.toy", module)
    monkeypatch.setitem(sys.modules, "experiments.room", types.ModuleType("experiments.room"))
    monkeypatch.setattr(launcher, "find", lambda: {"room.toy": "A toy."})
    monkeypatch.setattr(launcher, "_check_backend", lambda ignore: None)
    return module


def test_lists_the_real_experiments(capsys):
    assert launcher.main([]) == 0
    out = capsys.readouterr().out
    assert "euclidean.molecules" in out
    assert "benchmarks.spherical" in out
    assert "harness" not in out


def test_runs_seeds_and_variants(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    words = ["--workdir", str(tmp_path), "--seeds", "0", "1", "2", "--variants", "all", "--rate", "0.5", "--save"]
    assert launcher.main(["room.toy", "cpu", *words]) == 0
    assert [c.seed for c, _ in stand_in.calls] == [0, 1, 2, 0, 1, 2]
    assert [c.wide for c, _ in stand_in.calls] == [False] * 3 + [True] * 3
    assert all(c.rate == 0.5 for c, _ in stand_in.calls)
    saved = json.loads((tmp_path / "results" / "room.toy.cpu.json").read_text())
    assert saved["metrics"]["ours"]["error"] == {"mean": 1.0, "std": 0.5, "values": [0.5, 1.0, 1.5]}
    assert saved["metrics"]["baseline"]["error"]["mean"] == 3.0
    assert saved["config"]["rate"] == 0.5
    assert saved["claims"][0]["holds"] is True
    assert saved["versions"]["jax"]
    assert saved["device"]["backend"] == "cpu"
    assert len(saved["commit"]) in (7, 40)


def test_an_interrupted_sweep_is_taken_up(stand_in, tmp_path, monkeypatch):
    words = ["room.toy", "cpu", "--workdir", str(tmp_path), "--seeds", "0", "1", "--variants", "all"]
    run = stand_in.run

    def interrupted(config, workdir):
        if config.wide:
            raise KeyboardInterrupt
        return run(config, workdir)

    stand_in.run = interrupted
    with pytest.raises(KeyboardInterrupt):
        launcher.main(words)
    stand_in.run = run
    assert launcher.main([*words, "--reuse"]) == 0
    assert [(c.seed, c.wide) for c, _ in stand_in.calls] == [(0, False), (1, False), (0, True), (1, True)]
    found = json.loads((tmp_path / "room.toy.cpu" / "result.json").read_text())
    assert found["metrics"]["ours"]["error"]["values"] == [2.0, 4.0]
    assert set(found["reused"]) == {"ours/seed0", "ours/seed1"}
    # Another configuration is run anew, and so is everything without the option.
    for more in (["--reuse", "--rate", "0.5"], []):
        before = len(stand_in.calls)
        assert launcher.main([*words, *more]) == 0
        assert len(stand_in.calls) == before + 4


def test_default_is_one_variant_one_seed_and_no_saved_result(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    assert launcher.main(["room.toy", "--workdir", str(tmp_path)]) == 0
    assert [c.seed for c, _ in stand_in.calls] == [0]
    assert launcher.main(["room.toy", "--workdir", str(tmp_path), "--seed", "5", "--wide"]) == 0
    assert (stand_in.calls[-1][0].seed, stand_in.calls[-1][0].wide) == (5, True)
    assert not (tmp_path / "results").exists()
    assert (tmp_path / "room.toy.ci" / "result.json").exists()


def test_typos_are_answered_with_the_right_word(stand_in, tmp_path, capsys):
    assert launcher.main(["room.toi"]) == 2
    assert "Did you mean 'room.toy'?" in capsys.readouterr().err
    assert launcher.main(["room.toy", "cpo"]) == 2
    assert "Did you mean 'cpu'?" in capsys.readouterr().err
    assert launcher.main(["room.toy", "cpu", "--variants", "basline", "--workdir", str(tmp_path)]) == 2
    assert "Did you mean 'baseline'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        launcher.main(["room.toy", "cpu", "--rat", "1"])
    assert stop.value.code == 2
    assert "--rate" in capsys.readouterr().err
    assert not stand_in.calls


def test_claims_must_be_computed_and_complete():
    good = {"card": "a", "point": 1, "statement": "s", "bar": 1, "value": 2, "holds": True}
    assert results.check_claims([good]) == [good]
    with pytest.raises(ValueError, match="lacks"):
        results.check_claims([{k: v for k, v in good.items() if k != "bar"}])
    with pytest.raises(ValueError, match="holds"):
        results.check_claims([good | {"holds": "yes"}])


def test_results_are_json_whatever_they_hold(tmp_path):
    path = results.write(tmp_path / "a.json", {"config": Config(), "nan": float("nan"), "path": tmp_path, "t": (1, 2)})
    read = json.loads(path.read_text())
    assert read["nan"] == "nan"
    assert read["t"] == [1, 2]
    with pytest.raises(ValueError, match="same names"):
        results.summarise([{"a": 1.0}, {"b": 1.0}])


def test_registry_names_every_system_once():
    cards = [s.card for s in registry.SYSTEMS]
    assert len(cards) == len(set(cards)) == 38
    known = launcher.find()
    for system in registry.SYSTEMS:
        assert not system.experiment or system.experiment in known
        assert (system.headline is None) or system.experiment


def test_table_shows_ours_beside_the_paper():
    system = next(s for s in registry.SYSTEMS if s.headline)
    h = system.headline
    value = {"mean": 2 * h.value, "std": 0.5, "values": []}
    found = {h.result: {"metrics": {h.variant: {h.metric: value}}}}
    row = next(line for line in report.systems_table(found).splitlines() if system.arxiv in line)
    assert "2.00x" in row
    assert "± 0.5" in row
    assert "not built yet" in report.systems_table({})
    assert "no result yet" in report.systems_table({})
    assert report.systems_table({}).count("\n") == 39


def test_markers_are_needed():
    with pytest.raises(ValueError, match="markers"):
        report.update("text", {"systems": "x"})


def test_readme_is_what_the_results_say():
    assert report.main(check=True) == 0


def test_claims_follow_their_code(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert launcher.main(["room.toy", "cpu", "--workdir", str(tmp_path / "runs"), "--seed", "7", "--save"]) == 0
    path = tmp_path / "room.toy.cpu.json"
    before = json.loads(path.read_text())
    assert before["claims"][0]["holds"] is False
    assert report.refresh_claims(tmp_path) == []
    claims = stand_in.claims
    monkeypatch.setattr(stand_in, "claims", lambda metrics: [{**claims(metrics)[0], "bar": 20, "holds": True}])
    assert report.refresh_claims(tmp_path) == ["room.toy.cpu"]
    after = json.loads(path.read_text())
    assert after["claims"][0]["holds"] is True
    assert {k: v for k, v in after.items() if k != "claims"} == {k: v for k, v in before.items() if k != "claims"}
