"""graph6 lines: known lines, round trips at every size of the head, files, refusals."""

import numpy as np
import pytest

from equivariant_jax.data.graph6 import graph6_adjacency, graph6_line, read_graph6


def random_graph(n, seed=0):
    a = np.triu(np.random.default_rng(seed).random((n, n)) < 0.3, 1)
    return (a | a.T).astype(np.uint8)


def test_line_of_the_documentation():
    # nauty's formats.txt: five nodes, edges 0-2, 0-4, 1-3, 3-4.
    want = np.zeros((5, 5), np.uint8)
    for i, j in ((0, 2), (0, 4), (1, 3), (3, 4)):
        want[i, j] = want[j, i] = 1
    np.testing.assert_array_equal(graph6_adjacency("DQc"), want)
    assert graph6_line(want) == "DQc"


def test_small_graphs():
    assert graph6_adjacency("?").shape == (0, 0)
    np.testing.assert_array_equal(graph6_adjacency("@"), [[0]])
    np.testing.assert_array_equal(graph6_adjacency(">>graph6<<A_\n"), [[0, 1], [1, 0]])


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 12, 62, 63, 64, 200])
def test_round_trip(n):
    a = random_graph(n, n)
    line = graph6_line(a)
    assert line.isascii()
    assert all("?" <= c <= "~" for c in line)
    np.testing.assert_array_equal(graph6_adjacency(line), a)


def test_against_networkx():
    networkx = pytest.importorskip("networkx")
    for n in (6, 70):
        a = random_graph(n, 3)
        line = networkx.to_graph6_bytes(networkx.from_numpy_array(a), header=False).decode().strip()
        assert line == graph6_line(a)


def test_file(tmp_path):
    path = tmp_path / "graphs.g6"
    path.write_text(">>graph6<<\nBw\n\nDQc\n")
    assert [len(a) for a in read_graph6(path)] == [3, 5]
    path.write_text("Bw\nDQ\n")
    with pytest.raises(ValueError, match=r"graphs.g6, line 2: got 2 characters in 'DQ'; expected 3"):
        read_graph6(path)


@pytest.mark.parametrize("line", ["", ":Fa@x^", "&B?", "B!", "Bwé", "Bww", "~?", "~~???"])
def test_refuses(line):
    with pytest.raises(ValueError, match="got"):
        graph6_adjacency(line)


@pytest.mark.parametrize("a", [np.eye(3), np.triu(np.ones((3, 3)), 1), np.zeros((2, 3)), np.zeros(3)])
def test_refuses_what_has_no_line(a):
    with pytest.raises(ValueError, match="expected symmetric"):
        graph6_line(a)
