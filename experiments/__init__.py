"""Experiments and benchmarks: everything that turns layers into numbers, one launcher for all.

    python -m experiments                                  # what there is
    python -m experiments euclidean.molecules cpu          # run a preset
    python -m experiments euclidean.molecules cpu --steps 500 --seeds 0 1 2
    python -m experiments report                           # README's tables and plots from the committed results

An experiment is a module `experiments/<room>/<name>.py` with

- `CARD`: name of the system in `experiments.registry`,
- `Config`: frozen dataclass with a `seed`, every field overridable on the command line,
- `PRESETS`: `ci` (seconds), `cpu` (minutes, supports the claim), `paper` (published settings),
- `run(config, workdir) -> dict[str, float]`,
- `VARIANTS` (optional): name -> field overrides; the baselines, run by the same code and budget,
- `claims(metrics) -> list[dict]` (optional): what the numbers show, evaluated by code.

What they share stands in `experiments.claims`, `experiments.tables`, `experiments.pictures` and `experiments.runs`.
"""
