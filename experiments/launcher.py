"""Finds experiments, parses their options, runs their seeds and variants, writes the result."""

import argparse
import ast
import dataclasses
import difflib
import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import experiments
from equivariant_jax import training
from experiments import results

__all__ = ["find", "load", "main"]


def find() -> dict[str, str]:
    """All experiments and benchmarks: `room.name` -> first line of the module's docstring, without importing any.

    An experiment is a module with a function `run`, a benchmark one with a function `cases`.
    """
    found = {}
    for path in sorted(Path(next(iter(experiments.__path__))).glob("*/*.py")):
        tree = ast.parse(path.read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if "PRESETS" in path.read_text() and functions & {"run", "cases"}:
            found[f"{path.parent.name}.{path.stem}"] = (ast.get_docstring(tree) or "").split("\n", 1)[0]
    return found


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def load(name: str) -> ModuleType:
    """Imports an experiment by its `room.name`.

    Raises:
      ValueError: for an unknown name, with the nearest known one.
    """
    known = list(find())
    if name not in known:
        raise ValueError(f"there is no experiment {name!r}.{_suggest(name, known)}")
    return importlib.import_module(f"experiments.{name}")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the launcher, beside those of the experiment.

    Attributes:
      seeds: one run for each; default: the seed of the configuration.
      variants: which variants to run: names, or `all`; the default is the experiment's first.
      workdir: folder for logs, plots, checkpoints; a subfolder for each variant and seed.
      save: also write the result to `experiments/results`, from which README is made.
      tag: replaces the preset's name in the file name of the result.
      reuse: take the runs that an earlier call finished in this working directory with the same configuration, instead
        of running them again; the result names them and their commit. Several hosts must see the same directory.
      ignore_backend_faults: run although the backend computes wrong numbers.
    """

    seeds: tuple[int, ...] = ()
    variants: tuple[str, ...] = ()
    workdir: Path = Path("runs")
    save: bool = False
    tag: str = ""
    reuse: bool = False
    ignore_backend_faults: bool = False


def _parse(module: ModuleType, name: str, preset: str, arguments: Sequence[str]) -> tuple[Options, Any]:
    import tyro

    default = module.PRESETS[preset]
    options: Any = tyro.conf.OmitArgPrefixes[Options]
    config: Any = tyro.conf.OmitArgPrefixes[type(default)]
    form = dataclasses.make_dataclass(
        "Run",
        [
            ("options", options, dataclasses.field(default=Options())),
            ("config", config, dataclasses.field(default=default)),
        ],
        frozen=True,
    )
    program = f"python -m experiments {name} {preset}"
    # tyro names the nearest known option when it meets an unknown one, and exits with status 2.
    parsed: Any = tyro.cli(form, prog=program, description=module.__doc__, args=list(arguments))
    return parsed.options, parsed.config


def _check_backend(ignore: bool) -> None:
    from equivariant_jax.core import backend

    for fault in backend.check_backend():
        if not ignore:
            raise SystemExit(f"{fault.message}\nPass --ignore-backend-faults to run all the same.")
        print(fault.message, file=sys.stderr)


def _chosen(module: ModuleType, wanted: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    known: dict[str, Mapping[str, Any]] = getattr(module, "VARIANTS", {"run": {}})
    if not wanted:
        first = next(iter(known))
        return {first: known[first]}
    if list(wanted) == ["all"]:
        return known
    for variant in wanted:
        if variant not in known:
            raise ValueError(f"there is no variant {variant!r}.{_suggest(variant, list(known))}")
    return {variant: known[variant] for variant in wanted}


def run(name: str, preset: str, arguments: Sequence[str]) -> Path:
    """Runs an experiment's variants and seeds and writes the result.

    Args:
      name: `room.name`.
      preset: a key of the module's `PRESETS`.
      arguments: command-line overrides.

    Returns:
      Path of the JSON, which process 0 writes.

    Raises:
      ValueError: for an unknown experiment, preset or variant.
    """
    module = load(name)
    if preset not in module.PRESETS:
        raise ValueError(f"{name} has no preset {preset!r}.{_suggest(preset, list(module.PRESETS))}")
    options, config = _parse(module, name, preset, arguments)
    # Joins the other processes of a pod or cluster, if the environment names any (see experiments/pod.py).
    process = training.initialize()
    _check_backend(options.ignore_backend_faults)
    measured = (
        _benchmark(module, config)
        if hasattr(module, "cases")
        else _experiment(name, preset, module, options, config, writes=process.index == 0)
    )
    content = {"experiment": name, "card": getattr(module, "CARD", ""), "preset": preset, "config": config, **measured}
    stem = f"{name}.{options.tag or preset}"
    path = options.workdir / stem / "result.json"
    if process.index != 0:
        return path
    path = results.write(path, content)
    if options.save:
        path = results.write(results.RESULTS / f"{stem}.json", content)
    for claim in content["claims"]:
        print(f"{'holds' if claim['holds'] else 'FALLS SHORT':>12s}  {claim['statement']}: {claim['value']}")
    print(f"result: {path}")
    return path


def _benchmark(module: ModuleType, config: Any) -> dict[str, Any]:
    from experiments.benchmarks import harness

    rows, peaks = harness.run_cases(module.cases(config))
    claims = results.check_claims(module.claims(rows)) if hasattr(module, "claims") else []
    return {"rows": rows, "peaks": peaks, "claims": claims}


def _experiment(
    name: str, preset: str, module: ModuleType, options: Options, config: Any, *, writes: bool
) -> dict[str, Any]:
    variants = _chosen(module, options.variants)
    folder = options.workdir / f"{name}.{options.tag or preset}"
    metrics, seconds, seeds, reused = {}, {}, options.seeds or (config.seed,), {}
    for variant, overrides in variants.items():
        runs = []
        for seed in seeds:
            print(f"== {name} {preset}: variant {variant}, seed {seed}", flush=True)
            workdir = folder / variant / f"seed{seed}"
            own = dataclasses.replace(config, **{**overrides, "seed": seed})
            found = results.finished_run(workdir, own) if options.reuse else None
            if found is None:
                workdir.mkdir(parents=True, exist_ok=True)
                start = time.perf_counter()
                measured = module.run(own, workdir)
                found = {"config": own, "metrics": measured, "seconds": time.perf_counter() - start}
                if writes:
                    results.write(workdir / results.RUN, found)
            else:
                reused[f"{variant}/seed{seed}"] = found["commit"]
                print(f"   taken from {workdir / results.RUN}", flush=True)
            runs.append(found)
        metrics[variant] = results.summarise([run["metrics"] for run in runs])
        seconds[variant] = sum(run["seconds"] for run in runs) / len(seeds)
    claims = results.check_claims(module.claims(metrics)) if hasattr(module, "claims") else []
    for variant, table in metrics.items():
        for metric, value in table.items():
            spread = "" if value["std"] is None else f" ± {value['std']:.2g}"
            print(f"{variant:>12s}  {metric:<32s} {value['mean']:.5g}{spread}")
    return {
        "variants": variants,
        "seeds": seeds,
        "metrics": metrics,
        "seconds_per_run": seconds,
        "claims": claims,
        **({"reused": reused} if reused else {}),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m experiments`; returns the exit status."""
    from equivariant_jax.core import backend

    backend.apply_workarounds()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(experiments.__doc__)
        for name, line in find().items():
            print(f"  {name:<28s} {line}")
        return 0
    try:
        if words[0] == "report":
            from experiments import report

            parser = argparse.ArgumentParser(prog="python -m experiments report")
            parser.add_argument(
                "--claims", nargs="?", const="", default=None, metavar="CARD", help="print claims instead"
            )
            parser.add_argument("--check", action="store_true", help="fail if README is not what the results say")
            known = parser.parse_args(words[1:])
            return report.main(known.claims, check=known.check)
        preset = words[1] if len(words) > 1 and not words[1].startswith("-") else "ci"
        rest = words[2:] if len(words) > 1 and not words[1].startswith("-") else words[1:]
        run(words[0], preset, rest)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
