"""Tables: as many cells as heads, means with the spread over seeds, what is missing, what a run took."""

import numpy as np
import pytest

from experiments import results, tables

TABLE = results.summarise([{"mae": 0.1, "train_seconds": 60.0}, {"mae": 0.3, "train_seconds": 120.0}])


def test_rows_fit_their_heads():
    assert tables.markdown(("a", "b"), []) == "| a | b |\n|---|---|"
    with pytest.raises(ValueError, match="got 1 cells, expected 2"):
        tables.markdown(("a", "b"), [("1", "2"), ("3",)])


def test_cells_show_mean_and_sample_deviation():
    assert tables.cell(TABLE, "mae", ".3f") == "0.200 ± 0.141"
    assert tables.cell(TABLE, "mae", ".1f", factor=100) == "20.0 ± 14.1"
    assert tables.cell(TABLE, "mae", ".3g", ".1g") == "0.2 ± 0.1"
    assert tables.cell(TABLE, "rmse", ".3f") == "-"
    # Equal numbers have none, to the last digit; nor has one seed.
    assert tables.mean_and_spread([0.1, 0.1, 0.1], ".1g") == "0.1 ± 0"
    assert tables.mean_and_spread([float("nan"), 0.1], ".1f") == "nan ± nan"
    assert np.isnan(results.summarise([{"mae": float("nan")}, {"mae": 0.1}])["mae"]["std"])
    assert tables.cell(results.summarise([{"mae": 0.1}]), "mae", ".1f") == "0.1"


def test_a_row_for_each_variant_of_each_result():
    found = {"x": {"seeds": [0, 1], "metrics": {"ours": TABLE, "theirs": TABLE}}, "y": {"seeds": [3], "metrics": {}}}
    text = tables.runs_table(found, ("model", "error"), lambda _, variant, table: (variant, str(table["mae"]["mean"])))
    assert text.splitlines() == [
        "| model | error | seeds | training |",
        "|---|---|---|---|",
        "| ours | 0.2 | 2 | 1.5 min |",
        "| theirs | 0.2 | 2 | 1.5 min |",
    ]
    assert [variant for _, variant, _ in tables.each_variant(found)] == ["ours", "theirs"]


def test_peers_that_were_not_measured():
    row = {"ratios": {"theirs": 1.26, "others": 0.5}}
    assert tables.ratio_cells(row, ("theirs", "torch", "others")) == ["1.3x", "-", "0.5x"]
    assert tables.ratio_cells(row, ("torch", "theirs"), ".2f", missing="") == ["", "1.26x"]


def test_values_and_curves_are_read_from_a_result():
    # JSON has no NaN: results write it as a word.
    values = results.seed_values({"mae": {"values": ["nan", 1.0]}}, "mae")
    np.testing.assert_array_equal(values, [np.nan, 1.0])
    with pytest.raises(KeyError):
        results.seed_values(TABLE, "rmse")
    runs = [{"speed/+2": 1.0, "speed/-10": 2.0, "speed/-9": 3.0, "other/1": 9.0}, {"speed/+2": 4.0, "speed/-10": 5.0,
            "speed/-9": 6.0, "other/1": 9.0}]  # fmt: skip
    at, values = results.seed_curve(results.summarise(runs), "speed/")
    np.testing.assert_array_equal(at, [-10, -9, 2])
    np.testing.assert_array_equal(values, [[2.0, 5.0], [3.0, 6.0], [1.0, 4.0]])
    at, values = results.seed_curve(TABLE, "speed/")
    assert (at.shape, values.shape) == ((0,), (0, 1))
