r"""Graphs as graph6 lines, the text form of nauty, `geng`, networkx and SageMath.

A line is printable ASCII, six bits a character (the character's code minus 63, most significant bit first): the number
of nodes n in one character for n <= 62, in four for n < 258,048 (`~` and 18 bits) and in eight beyond (`~~` and 36
bits); then the upper triangle of the adjacency matrix column by column, (0, 1), (0, 2), (1, 2), (0, 3), ..., filled up
with zeros. A file may begin with `>>graph6<<`. Graphs are simple and undirected.

All connected graphs with eight nodes are the 11,117 lines of `geng -c 8` (Debian package nauty).

Reference: McKay, "Description of graph6, sparse6 and digraph6 encodings", in the documentation of nauty.
"""

from pathlib import Path

import numpy as np

__all__ = ["graph6_adjacency", "graph6_line", "read_graph6"]

_HEADER = ">>graph6<<"


def _number(value: np.ndarray) -> int:
    total = 0
    for six in value:
        total = 64 * total + int(six)
    return total


def graph6_adjacency(line: str) -> np.ndarray:
    """Reads one graph.

    Args:
      line: graph6, with or without header and line end.

    Returns:
      Symmetric matrix of zeros and ones, `[n, n]`, uint8.

    Raises:
      ValueError: if the line holds other characters, or more or fewer than its number of nodes says.

    Example:
      >>> graph6_adjacency("Bw").tolist()  # a triangle
      [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    """
    text = line.strip().removeprefix(_HEADER)
    codes = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 63
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63:
        raise ValueError(
            f"got {line[:40]!r}; expected graph6: characters from '?' to '~' only, not sparse6 or digraph6."
        )
    start = 1 if codes[0] < 63 else 4 if codes.size > 1 and codes[1] < 63 else 8
    n = _number(codes[:1] if start == 1 else codes[1:4] if start == 4 else codes[2:8])
    pairs = n * (n - 1) // 2
    if codes.size != start + -(-pairs // 6):
        raise ValueError(
            f"got {codes.size} characters in {line[:40]!r}; expected {start + -(-pairs // 6)} for its {n} nodes."
        )
    bits = (codes[start:, None] >> np.arange(5, -1, -1)) & 1
    adjacency = np.zeros((n, n), np.uint8)
    # The lower triangle row by row is the upper one column by column.
    adjacency[np.tril_indices(n, -1)] = bits.reshape(-1)[:pairs]
    return adjacency + adjacency.T


def graph6_line(adjacency: np.ndarray) -> str:
    """Writes one graph.

    Args:
      adjacency: symmetric, zeros on the diagonal, shape `[n, n]`; what is not zero is an edge.

    Returns:
      The line, without header and line end.

    Raises:
      ValueError: if the matrix is not square and symmetric with a diagonal of zeros.

    Example:
      >>> graph6_line(1 - np.eye(3))
      'Bw'
    """
    a = np.asarray(adjacency) != 0
    if a.ndim != 2 or a.shape[0] != a.shape[1] or np.any(a != a.T) or np.any(np.diagonal(a)):
        raise ValueError(f"got an adjacency of shape {a.shape}; expected symmetric [n, n] with zeros on the diagonal.")
    n = a.shape[0]
    size = [n] if n <= 62 else [63] + [(n >> shift) & 63 for shift in (12, 6, 0)]
    if n > 258_047:
        size = [63, 63] + [(n >> shift) & 63 for shift in (30, 24, 18, 12, 6, 0)]
    bits = a[np.tril_indices(n, -1)].astype(np.int64)
    bits = np.pad(bits, (0, -bits.size % 6)).reshape(-1, 6) @ (1 << np.arange(5, -1, -1))
    return "".join(chr(int(code) + 63) for code in [*size, *bits])


def read_graph6(path: str | Path) -> list[np.ndarray]:
    """Reads a file of graph6 lines; empty lines are skipped.

    Args:
      path: the file.

    Returns:
      One matrix `[n, n]`, uint8, for each line.

    Raises:
      ValueError: naming the line that does not fit.
    """
    graphs = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        if not line.strip() or line.strip() == _HEADER:
            continue
        try:
            graphs.append(graph6_adjacency(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return graphs
