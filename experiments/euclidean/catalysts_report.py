"""What README shows of `euclidean.catalysts`: errors of both variants on each test part."""

from collections.abc import Mapping
from typing import Any

__all__ = ["tables"]


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    columns = ("energy_mae_meV", "forces_mae_meV_A", "forces_cos", "efwt_percent")
    lines = [
        "| data | model | parameters | part | E MAE (meV) | F MAE (meV/Å) | F cos | EFwT (%) | seeds | training |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in found.values():
        for variant, table in result["metrics"].items():
            for part in sorted({name.split("/")[0] for name in table if "/" in name} - {"validation"}):
                cells = []
                for column in columns:
                    value = table[f"{part}/{column}"]
                    spread = "" if value["std"] is None else f" ± {value['std']:.2g}"
                    cells.append(f"{value['mean']:.3g}{spread}")
                head = (result["config"]["dataset"], variant, f"{table['parameters']['mean']:.0f}", part)
                minutes = f"{table['train_seconds']['mean'] / 60:.0f} min, {result['device']['cpu_cores']} cores"
                lines.append("| " + " | ".join((*head, *cells, str(len(result["seeds"])), minutes)) + " |")
    return {"euclidean.catalysts": "\n".join(lines)}
