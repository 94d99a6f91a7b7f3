"""Benchmarks: ours beside the peers, in one process, interleaved.

    python -m experiments benchmarks.spherical cpu --save

A benchmark module has `Config`, `PRESETS` and `cases(config)`, which yields `harness.Case`s, and optionally
`claims(rows)`.
"""
