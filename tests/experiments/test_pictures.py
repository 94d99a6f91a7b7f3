"""Pictures: the same bytes from the same numbers, nothing left open, means with their range."""

import subprocess
import sys

import numpy as np
import pytest

from experiments.pictures import draw_curve, picture

AT, VALUES = np.arange(4), np.array([[0.0, 1.0, 5.0], [1.0, 1.0, 1.0], [3.0, 2.0, 1.0], [0.0, 0.0, 0.3]])


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    paths = [tmp_path / name for name in ("first.svg", "again.svg", "other.svg")]
    for path, values in zip(paths, (VALUES, VALUES, 2 * VALUES), strict=True):
        with picture(path, (2, 1)) as axis:
            draw_curve(axis, AT, values, label="x")
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again != other
    assert b"<dc:date>" not in first


def test_the_mean_is_a_line_and_the_range_a_band(tmp_path):
    with picture(tmp_path / "curve.png", (2, 1), rows=1, columns=2) as axes:
        draw_curve(axes[1], AT, VALUES, color="grey")
        (line,), (band,) = axes[1].lines, axes[1].collections
        np.testing.assert_allclose(line.get_ydata(), VALUES.mean(axis=1))
        corners = band.get_paths()[0].vertices
        for at, values in zip(AT, VALUES, strict=True):
            there = corners[corners[:, 0] == at, 1]
            assert (there.min(), there.max()) == (values.min(), values.max())
        assert not axes[0].lines
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_box_only_where_it_is_asked_for(tmp_path):
    for box in (False, True):
        with picture(tmp_path / "box.svg", (2, 1), box=box) as axis:
            assert [axis.spines[side].get_visible() for side in ("top", "right", "left", "bottom")] == [box, box, 1, 1]


def test_an_error_leaves_no_figure_and_no_file(tmp_path):
    import matplotlib
    from matplotlib import pyplot

    before = matplotlib.rcParams["svg.hashsalt"]
    with pytest.raises(ZeroDivisionError), picture(tmp_path / "never.svg", (2, 1)):
        raise ZeroDivisionError
    assert not pyplot.get_fignums()
    assert not (tmp_path / "never.svg").exists()
    assert matplotlib.rcParams["svg.hashsalt"] == before


def test_drawing_is_what_needs_matplotlib():
    code = "import sys, experiments.pictures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
