"""README's tables and plots, generated from the registry and the committed results."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments import results
from experiments.registry import SYSTEMS, System
from experiments.tables import markdown

__all__ = ["benchmark_table", "main", "print_claims", "refresh_claims", "shortfalls_table", "systems_table", "update"]

README = Path(__file__).parent.parent / "README.md"


def _reached(system: System, found: Mapping[str, Any]) -> tuple[str, str]:
    """What our run reached beside the paper's number, and the gap; empty strings where nothing can be compared."""
    headline = system.headline
    if headline is None:
        return ("not built yet", "") if not system.experiment else ("see the claims", "")
    try:
        value = found[headline.result]["metrics"][headline.variant][headline.metric]
    except KeyError:
        return "no result yet", ""
    spread = "" if value["std"] is None else f" ± {value['std']:.2g}"
    ratio = value["mean"] / headline.value
    better = ratio >= 1 if headline.higher_is_better else ratio <= 1
    gap = "reached" if better else f"{ratio:.2f}x"
    return f"{value['mean']:.3g}{spread} {headline.unit}", gap


def systems_table(found: Mapping[str, Any]) -> str:
    """The table of all systems as Markdown."""
    heads = ("paper", "room", "function", "command", "paper's number", "reached", "gap")
    rows = []
    for system in SYSTEMS:
        reached, gap = _reached(system, found)
        link = f"[{system.paper}](https://arxiv.org/abs/{system.arxiv})"
        command = f"`python -m experiments {system.experiment} cpu`" if system.experiment else ""
        function = f"`{system.function}`" if system.experiment else ""
        rows.append((link, f"`{system.room}`", function, command, system.published, reached, gap))
    return markdown(heads, rows)


def benchmark_table(found: Mapping[str, Any]) -> str:
    """Benchmark results as Markdown: one row for each case, times as ratios to ours."""
    heads = ("benchmark", "case", "ours (ms)", "peers (times ours)", "compile (s)", "device")
    rows = []
    for result in found.values():
        name = str(result.get("experiment", ""))
        # Long sweeps bring a table of their own.
        if not name.startswith("benchmarks.") or hasattr(importlib.import_module(f"experiments.{name}"), "tables"):
            continue
        for row in result["rows"]:
            peers = ", ".join(f"{name} {ratio:.2g}x" for name, ratio in row["ratios"].items())
            benchmark = name.removeprefix("benchmarks.")
            times = f"{row['ours_ms']:.3g}", peers, f"{row['compile_s']:.2g}"
            rows.append((benchmark, row["case"], *times, result["device"]["kind"]))
    return markdown(heads, rows)


def shortfalls_table(found: Mapping[str, Any]) -> str:
    """Every claim of the committed results that falls short, with the reason as far as it is known, as Markdown."""
    names = {system.card: system.paper.partition(" (")[0] for system in SYSTEMS}
    rows = [
        (names[claim["card"]], claim["statement"], f"{claim['bar']:.4g}", f"{claim['value']:.4g}", claim.get("why", ""))
        for result in found.values()
        for claim in result.get("claims", [])
        if not claim["holds"]
    ]
    rows = [tuple(cell.replace("|", "\\|") for cell in row) for row in sorted(rows)]
    return markdown(("system", "claim", "bar", "reached", "why"), rows)


def _claim_lines(found: Mapping[str, Any], card: str) -> list[str]:
    lines = []
    for stem, result in found.items():
        for claim in result.get("claims", []):
            if card and claim["card"] != card:
                continue
            state = "holds" if claim["holds"] else "falls short"
            lines.append(
                f"{claim['card']} {claim['point']}: {state}: {claim['statement']} (bar {claim['bar']}, "
                f"value {claim['value']}; {stem})"
            )
    return lines


def print_claims(card: str = "") -> None:
    """Prints every claim of the committed results, of one card or of all, and what no result speaks to yet."""
    found = results.read_all()
    for line in _claim_lines(found, card):
        print(line)
    spoken = {claim["card"] for result in found.values() for claim in result.get("claims", [])}
    silent = [s.card for s in SYSTEMS if s.card not in spoken and (not card or s.card == card)]
    if silent:
        print("no result speaks to: " + ", ".join(silent))
    for system in SYSTEMS:
        if not system.experiment or (card and system.card != card):
            continue
        module = importlib.import_module(f"experiments.{system.experiment}")
        have = {str(c["point"]) for r in found.values() for c in r.get("claims", []) if c["card"] == system.card}
        open_points = [str(p) for p in getattr(module, "POINTS", ()) if str(p) not in have]
        if open_points:
            print(f"{system.card}: points that no result speaks to yet: {', '.join(open_points)}")


def update(text: str, tables: Mapping[str, str]) -> str:
    r"""Replaces what stands between `<!-- name -->` and `<!-- /name -->` markers.

    Args:
      text: Markdown with markers.
      tables: marker name -> new content.

    Returns:
      The new text.

    Raises:
      ValueError: if a marker is missing.

    Example:
      >>> update("<!-- t -->old<!-- /t -->", {"t": "new"})
      '<!-- t -->\nnew\n<!-- /t -->'
    """
    for name, content in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if start not in text or end not in text:
            raise ValueError(f"README lacks the markers {start} ... {end}; expected both, in this order.")
        head, rest = text.split(start, 1)
        _, tail = rest.split(end, 1)
        text = f"{head}{start}\n{content}\n{end}{tail}"
    return text


def _modules(found: Mapping[str, Any]) -> list[tuple[ModuleType, dict[str, Any]]]:
    """Every experiment that has results, with its results."""
    names = sorted({r["experiment"] for r in found.values() if "experiment" in r})
    return [
        (
            importlib.import_module(f"experiments.{name}"),
            {k: r for k, r in found.items() if r.get("experiment") == name},
        )
        for name in names
    ]


def refresh_claims(directory: Path = results.RESULTS) -> list[str]:
    """Evaluates the claims of committed results anew from their metrics, since the code of claims moves on.

    Args:
      directory: folder of results.

    Returns:
      File stems whose claims changed; their files were rewritten, everything else in them untouched.
    """
    changed = []
    found = results.read_all(directory)
    for module, own in _modules(found):
        for stem, result in own.items():
            measured = result.get("metrics", result.get("rows"))
            if not hasattr(module, "claims") or measured is None:
                continue
            claims = results.check_claims(module.claims(measured))
            if claims != result["claims"]:
                changed.append(stem)
                results.dump(directory / f"{stem}.json", {**result, "claims": claims})
    return changed


def main(claims: str | None = None, *, check: bool = False) -> int:
    """Rewrites README (or checks it, or prints claims); returns the exit status."""
    if claims is not None:
        print_claims(claims)
        return 0
    if not check:
        for stem in refresh_claims():
            print(f"claims of {stem} evaluated anew")
    found = results.read_all()
    old = README.read_text()
    tables = {
        "systems": systems_table(found),
        "benchmarks": benchmark_table(found),
        "shortfalls": shortfalls_table(found),
    }
    for module, own in _modules(found):
        tables |= module.tables(own) if hasattr(module, "tables") else {}
    new = update(old, tables)
    if check:
        if new != old:
            print("README is not what the results say; run `python -m experiments report`.", file=sys.stderr)
        return int(new != old)
    for module, own in _modules(found):
        if hasattr(module, "plots"):
            module.plots(own, results.RESULTS)
    README.write_text(new)
    print(f"README's tables written from {len(found)} results")
    return 0
