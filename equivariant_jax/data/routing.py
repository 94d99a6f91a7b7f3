r"""Tours through points of the plane: TSPLIB's files, lengths, the optimum by dynamic programming, 2-opt; NumPy.

Lengths are Euclidean and not rounded (TSPLIB's EUC_2D rounds each edge to whole numbers), so that they scale with the
points. `optimal_tour` is exact (`O(2^n n^2)`, at most 12 points); `two_opt` a local optimum, the best of one descent
from the nearest-neighbour tour of every start.

References: Held, Karp 1962, "A dynamic programming approach to sequencing problems"; Croes 1958, "A method for solving
traveling-salesman problems"; Reinelt 1991, "TSPLIB".
"""

import os
from pathlib import Path

import numpy as np

__all__ = ["optimal_tour", "read_tsplib", "tour_length", "two_opt"]

LARGEST_EXACT = 12


def read_tsplib(path: str | os.PathLike[str]) -> np.ndarray:
    r"""Reads the points of a TSPLIB file, its NODE_COORD_SECTION.

    Args:
      path: of the file.

    Returns:
      Points `[n, d]` float64, d = 2 or 3, in the order of the file.

    Raises:
      ValueError: if the section is missing, malformed, or not as long as DIMENSION says; the message names the line.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "two.tsp")
      ...     _ = path.write_text("DIMENSION: 2\nNODE_COORD_SECTION\n1 0.5 1e1\n2 3 4\nEOF\n")
      ...     read_tsplib(path).tolist()
      [[0.5, 10.0], [3.0, 4.0]]
    """
    path = Path(path)
    points, expected, inside = [], None, False
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        words = line.replace(":", " ").split()
        if not words:
            continue
        try:
            if words[0] == "DIMENSION":
                expected = int(words[1])
            elif words[0] == "NODE_COORD_SECTION":
                inside = True
            elif inside and words[0][0].isalpha():
                break
            elif inside:
                points.append([float(word) for word in words[1:]])
                if len(points[-1]) not in (2, 3) or len(points[-1]) != len(points[0]):
                    raise ValueError(f"got {len(points[-1])} coordinates, expected {len(points[0])} (2 or 3)")
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not points or (expected is not None and expected != len(points)):
        raise ValueError(f"{path}: got {len(points)} lines in NODE_COORD_SECTION, expected DIMENSION, {expected}.")
    return np.asarray(points, np.float64)


def tour_length(points: np.ndarray, tour: np.ndarray) -> np.ndarray:
    """Length of closed tours.

    Args:
      points: shape `[..., n, d]`, float, any unit.
      tour: order of visits, shape `[..., n]`, int.

    Returns:
      Lengths `[...]` in the unit and dtype of `points`.

    Example:
      >>> tour_length(np.array([[0.0, 0], [1, 1], [1, 0], [0, 1]]), np.array([0, 2, 1, 3])).item()
      4.0
    """
    visited = np.take_along_axis(points, tour[..., None], axis=-2)
    return np.linalg.norm(visited - np.roll(visited, -1, axis=-2), axis=-1).sum(axis=-1)


def _distances(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points)
    if points.ndim != 2 or len(points) < 1 or not np.issubdtype(points.dtype, np.floating):
        raise ValueError(f"points: got {points.dtype} {points.shape}; expected float [n, d].")
    return np.linalg.norm(points[:, None] - points[None].astype(np.float64), axis=-1)


def optimal_tour(points: np.ndarray) -> np.ndarray:
    """Finds a shortest tour by dynamic programming over subsets.

    Args:
      points: shape `[n, d]`, float; at most 12.

    Returns:
      Order of visits from point 0, `[n]` int32.

    Raises:
      ValueError: if there are more points, or the shape does not fit.

    Example:
      >>> optimal_tour(np.array([[0.0, 0], [1, 1], [1, 0], [0, 1]])).tolist()
      [0, 3, 1, 2]
    """
    distance = _distances(points)
    m = len(distance) - 1
    if m >= LARGEST_EXACT:
        raise ValueError(f"points: got {m + 1}, expected at most {LARGEST_EXACT}; use two_opt for more.")
    if m < 1:
        return np.zeros(m + 1, np.int32)
    away, between = distance[0, 1:], distance[1:, 1:]
    # cost[s, j]: shortest path from point 0 through the subset s (of the other points) that ends in its member j.
    cost = np.full((1 << m, m), np.inf)
    before = np.zeros((1 << m, m), np.int32)
    cost[1 << np.arange(m), np.arange(m)] = away
    for s in range(1, 1 << m):
        for j in np.flatnonzero(s >> np.arange(m) & 1):
            rest = s ^ (1 << j)
            if rest:
                through = cost[rest] + between[:, j]
                before[s, j] = np.argmin(through)
                cost[s, j] = through[before[s, j]]
    s = (1 << m) - 1
    j, tour = int(np.argmin(cost[s] + away)), []
    while s:
        tour.append(j + 1)
        s, j = s ^ (1 << j), int(before[s, j])
    return np.asarray([0, *reversed(tour)], np.int32)


def two_opt(points: np.ndarray, *, starts: int | None = None) -> np.ndarray:
    """Finds a short tour: nearest-neighbour tours, each improved until no reversal of a stretch shortens it.

    Args:
      points: shape `[n, d]`, float.
      starts: from how many points nearest-neighbour tours start; None for all.

    Returns:
      The best order of visits found, `[n]` int32.

    Raises:
      ValueError: if the shape does not fit.

    Example:
      >>> square = np.array([[0.0, 0], [1, 1], [1, 0], [0, 1]])
      >>> tour_length(square, two_opt(square)).item()
      4.0
    """
    distance = _distances(points)
    n = len(distance)
    best, least = np.arange(n, dtype=np.int32), np.inf
    for start in range(n if starts is None else min(starts, n)):
        tour = _descended(distance, _nearest(distance, start))
        length = distance[tour, np.roll(tour, -1)].sum()
        if length < least:
            best, least = tour.astype(np.int32), length
    return best


def _nearest(distance: np.ndarray, start: int) -> np.ndarray:
    tour, free = [start], np.ones(len(distance), bool)
    free[start] = False
    for _ in range(len(distance) - 1):
        tour.append(int(np.argmin(np.where(free, distance[tour[-1]], np.inf))))
        free[tour[-1]] = False
    return np.asarray(tour)


def _descended(distance: np.ndarray, tour: np.ndarray) -> np.ndarray:
    n = len(tour)
    if n < 4:
        return tour
    upper = np.triu(np.ones((n, n), bool), 1)
    limit = -1e-12 * max(distance.max(), 1e-300)
    while True:
        after = np.roll(tour, -1)
        edge = distance[tour, after]
        # What replacing the edges behind positions i < j gains: the stretch between them is reversed.
        change = distance[np.ix_(tour, tour)] + distance[np.ix_(after, after)] - edge[:, None] - edge[None]
        i, j = np.unravel_index(np.argmin(np.where(upper, change, 0.0)), change.shape)
        if change[i, j] >= limit or not upper[i, j]:
            return tour
        tour = np.concatenate([tour[: i + 1], tour[i + 1 : j + 1][::-1], tour[j + 1 :]])
