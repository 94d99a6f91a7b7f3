"""What README shows of `euclidean.catalysts`: errors of both variants on each test part."""

from collections.abc import Mapping
from typing import Any

from experiments.tables import cell, each_variant, markdown

__all__ = ["tables"]


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Makes the table of all committed runs.

    Args:
      found: results by file stem.

    Returns:
      README marker -> Markdown.
    """
    columns = ("energy_mae_meV", "forces_mae_meV_A", "forces_cos", "efwt_percent")
    heads = (
        "data", "model", "parameters", "part", "E MAE (meV)", "F MAE (meV/Å)", "F cos", "EFwT (%)", "seeds", "training",
    )  # fmt: skip
    rows = []
    for result, variant, table in each_variant(found):
        for part in sorted({name.split("/")[0] for name in table if "/" in name} - {"validation"}):
            cells = (cell(table, f"{part}/{column}", ".3g", ".2g") for column in columns)
            head = (result["config"]["dataset"], variant, f"{table['parameters']['mean']:.0f}", part)
            minutes = f"{table['train_seconds']['mean'] / 60:.0f} min, {result['device']['cpu_cores']} cores"
            rows.append((*head, *cells, str(len(result["seeds"])), minutes))
    return {"euclidean.catalysts": markdown(heads, rows)}
