r"""Ten classes of solids as clouds of points on their surfaces, with unit normals; NumPy, seeded.

Specification. Cloud i of seed s is drawn by `numpy.random.default_rng([s, i])` alone, so a longer set starts with the
shorter one; its class is i modulo the number of classes. Points are independent and uniform *by area* on the surface of
the solid, normals are exact and point outwards. The solids, with z as their axis, `U(a, b)` uniform:

| class | base solid |
|---|---|
| box | half sides 1, 1, h; h = U(0.4, 1.8) |
| cylinder | radius 1, half height h = U(0.4, 1.8) |
| cone | base of radius 1 at z = -h, tip at h = U(0.6, 1.6) |
| torus | radius 1, of the tube U(0.2, 0.45) |
| capsule | radius 1, straight part from -h to h = U(0.7, 2) |
| helix | radius 1, of the tube U(0.1, 0.2), U(1.5, 3) turns of rise U(0.6, 1.2), round ends |
| superquadric | abs(x)^p + abs(y)^p + abs(z / h)^p = 1; p = U(2, 2.5), h = U(0.5, 1.8) |
| pyramid | square base of half side 1 at z = -h, tip at h = U(0.6, 1.6) |
| cross | arms of half length 1 and half width U(0.2, 0.35) along x and y, half height U(0.15, 0.6) |
| arch | upper half of a torus about y: radius 1, of the tube U(0.15, 0.35), round ends |

Each is then stretched by U(1 - `stretch`, 1 + `stretch`) along x and along y (independently; areas are those after the
stretch), and, with `normalize`, moved and scaled so that its points have mean zero and the farthest has distance one.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from equivariant_jax.data.meshes import sample_mesh

__all__ = ["SHAPE_CLASSES", "procedural_shapes"]

_Surface = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Draws that many points, uniform by area, and outer unit normals, float64 `[m, 3]` each."""


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _mesh(rng: np.random.Generator, vertices: Sequence, faces: Sequence) -> _Surface:
    corners, triangles = np.asarray(vertices, np.float64), np.asarray(faces, np.int32)
    return lambda m: sample_mesh(rng, corners, triangles, m)


def _revolved(rng: np.random.Generator, profile: Sequence[tuple[float, float]]) -> _Surface:
    """Surface of revolution of a polyline `(radius, z)` that goes upwards along the outside."""
    corners = np.asarray(profile, np.float64)
    start, step = corners[:-1], np.diff(corners, axis=0)
    length = np.linalg.norm(step, axis=1)
    area = length * (corners[:-1, 0] + corners[1:, 0])

    def draw(m: int) -> tuple[np.ndarray, np.ndarray]:
        piece = rng.choice(len(area), m, p=area / area.sum())
        # The radius grows linearly along a piece: its square is uniform.
        a, b = start[piece, 0], start[piece, 0] + step[piece, 0]
        u = rng.uniform(size=m)
        flat = np.abs(b - a) < 1e-12
        t = np.where(flat, u, (np.sqrt(a**2 + u * (b**2 - a**2)) - a) / np.where(flat, 1.0, b - a))
        radius, z = (start[piece] + t[:, None] * step[piece]).T
        angle = rng.uniform(0, 2 * np.pi, m)
        out, up = step[piece, 1] / length[piece], -step[piece, 0] / length[piece]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([radius * cos, radius * sin, z], -1), np.stack([out * cos, out * sin, up], -1)

    return draw


def _tube(
    rng: np.random.Generator,
    curve: Callable[[np.ndarray], tuple],
    curvature: float,
    span: float,
    r: float,
    closed: bool,
) -> _Surface:
    """Tube of radius r about a curve of constant speed and curvature, with half spheres as ends unless it is closed.

    `curve` maps t in [0, 1] to position, unit tangent, and unit normal (towards the centre of curvature); `span` is its
    length. The area element at the angle v from the normal is `r (1 - r curvature cos v)`.
    """
    side = 2 * np.pi * r * span
    ends = 0.0 if closed else 4 * np.pi * r**2

    def draw(m: int) -> tuple[np.ndarray, np.ndarray]:
        number = rng.binomial(m, side / (side + ends))
        angle = _accepted(
            number,
            lambda k: (rng.uniform(0, 2 * np.pi, k),),
            lambda v: rng.uniform(size=len(v)) * (1 + r * curvature) < 1 - r * curvature * np.cos(v),
        )[0]
        place, tangent, normal = curve(rng.uniform(size=number))
        outward = np.cos(angle)[:, None] * normal + np.sin(angle)[:, None] * np.cross(tangent, normal)
        points = place + r * outward
        last = rng.integers(0, 2, m - number)
        place, tangent, _ = curve(last.astype(np.float64))
        sphere = _unit(rng.normal(size=(m - number, 3)))
        away = tangent * (2.0 * last - 1)[:, None]
        sphere = sphere * np.where(np.sum(sphere * away, -1, keepdims=True) < 0, -1.0, 1.0)
        # In random order, so that any part of the points is a sample of the whole surface.
        order = rng.permutation(m)
        return np.concatenate([points, place + r * sphere])[order], np.concatenate([outward, sphere])[order]

    return draw


def _accepted(m: int, propose: Callable[[int], tuple], accept: Callable) -> tuple[np.ndarray, ...]:
    """Draws until m proposals are accepted."""
    kept, count = [propose(0)], 0
    while count < m:
        drawn = propose(2 * (m - count) + 8)
        good = accept(*drawn)
        kept.append(tuple(part[good] for part in drawn))
        count += int(good.sum())
    return tuple(np.concatenate(parts)[:m] for parts in zip(*kept, strict=True))


def _box(rng: np.random.Generator) -> _Surface:
    return _prism(rng, [(-1, -1), (1, -1), (1, 1), (-1, 1)], [(0, 1, 2, 3)], rng.uniform(0.4, 1.8))


def _prism(rng: np.random.Generator, outline: Sequence | np.ndarray, pieces: Sequence, h: float) -> _Surface:
    """Upright prism between -h and h: outline counterclockwise, and convex pieces that make up its base."""
    n = len(outline)
    vertices = [(*p, -h) for p in outline] + [(*p, h) for p in outline]
    faces = []
    for i in range(n):
        j = (i + 1) % n
        faces += [(i, j, n + j), (i, n + j, n + i)]
    for piece in pieces:
        for b, c in itertools.pairwise(piece[1:]):
            faces += [(piece[0], c, b), (n + piece[0], n + b, n + c)]
    return _mesh(rng, vertices, faces)


def _cylinder(rng: np.random.Generator) -> _Surface:
    h = rng.uniform(0.4, 1.8)
    return _revolved(rng, [(0, -h), (1, -h), (1, h), (0, h)])


def _cone(rng: np.random.Generator) -> _Surface:
    h = rng.uniform(0.6, 1.6)
    return _revolved(rng, [(0, -h), (1, -h), (0, h)])


def _circle(t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    angle = 2 * np.pi * t
    cos, sin, zero = np.cos(angle), np.sin(angle), np.zeros_like(angle)
    return np.stack([cos, sin, zero], -1), np.stack([-sin, cos, zero], -1), np.stack([-cos, -sin, zero], -1)


def _torus(rng: np.random.Generator) -> _Surface:
    return _tube(rng, _circle, 1.0, 2 * np.pi, rng.uniform(0.2, 0.45), closed=True)


def _capsule(rng: np.random.Generator) -> _Surface:
    h = rng.uniform(0.7, 2.0)

    def line(t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        one, zero = np.ones_like(t), np.zeros_like(t)
        return (
            np.stack([zero, zero, (2 * t - 1) * h], -1),
            np.stack([zero, zero, one], -1),
            np.stack([one, zero, zero], -1),
        )

    return _tube(rng, line, 0.0, 2 * h, 1.0, closed=False)


def _helix(rng: np.random.Generator) -> _Surface:
    r, turns, rise = rng.uniform(0.1, 0.2), rng.uniform(1.5, 3.0), rng.uniform(0.6, 1.2)
    slope = rise / (2 * np.pi)
    speed = np.hypot(1.0, slope)

    def curve(t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        angle = 2 * np.pi * turns * t
        cos, sin = np.cos(angle), np.sin(angle)
        place = np.stack([cos, sin, slope * angle - rise * turns / 2], -1)
        tangent = np.stack([-sin, cos, np.full_like(angle, slope)], -1) / speed
        return place, tangent, np.stack([-cos, -sin, np.zeros_like(angle)], -1)

    return _tube(rng, curve, 1 / speed**2, 2 * np.pi * turns * speed, r, closed=False)


def _superquadric(rng: np.random.Generator) -> _Surface:
    p, axes = rng.uniform(2.0, 2.5), np.array([1.0, 1.0, rng.uniform(0.5, 1.8)])

    def surface(direction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        radius = np.sum(np.abs(direction / axes) ** p, axis=-1) ** (-1 / p)
        points = radius[:, None] * direction
        normals = _unit(np.sign(points) * np.abs(points / axes) ** (p - 1) / axes)
        # A direction's solid angle covers the area `radius^2 / cos(normal, direction)`.
        return points, normals, radius**2 / np.sum(normals * direction, axis=-1)

    # A p-ball lies between the ball of its least half axis and, for p >= 2, that of the length of all of them.
    largest = (3 ** (0.5 - 1 / p) * axes.max()) ** 3 / axes.min()

    def draw(m: int) -> tuple[np.ndarray, np.ndarray]:
        direction = _accepted(
            m,
            lambda k: (_unit(rng.normal(size=(k, 3))),),
            lambda u: rng.uniform(size=len(u)) * largest < surface(u)[2],
        )[0]
        return surface(direction)[:2]

    return draw


def _pyramid(rng: np.random.Generator) -> _Surface:
    h = rng.uniform(0.6, 1.6)
    vertices = [(-1, -1, -h), (1, -1, -h), (1, 1, -h), (-1, 1, -h), (0, 0, h)]
    return _mesh(rng, vertices, [(0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4), (0, 2, 1), (0, 3, 2)])


def _cross(rng: np.random.Generator) -> _Surface:
    w, h = rng.uniform(0.2, 0.35), rng.uniform(0.15, 0.6)
    # Corners counterclockwise from the foot of the arm along -y; every third is an inner one.
    outline = [
        (-w, -1),
        (w, -1),
        (w, -w),
        (1, -w),
        (1, w),
        (w, w),
        (w, 1),
        (-w, 1),
        (-w, w),
        (-1, w),
        (-1, -w),
        (-w, -w),
    ]
    pieces = [(0, 1, 2, 11), (2, 3, 4, 5), (5, 6, 7, 8), (8, 9, 10, 11), (2, 5, 8, 11)]
    return _prism(rng, outline, pieces, h)


def _arch(rng: np.random.Generator) -> _Surface:
    def curve(t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        angle = np.pi * t
        cos, sin, zero = np.cos(angle), np.sin(angle), np.zeros_like(angle)
        return np.stack([cos, zero, sin], -1), np.stack([-sin, zero, cos], -1), np.stack([-cos, zero, -sin], -1)

    return _tube(rng, curve, 1.0, np.pi, rng.uniform(0.15, 0.35), closed=False)


_MAKERS: dict[str, Callable[[np.random.Generator], _Surface]] = {
    "box": _box,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "capsule": _capsule,
    "helix": _helix,
    "superquadric": _superquadric,
    "pyramid": _pyramid,
    "cross": _cross,
    "arch": _arch,
}

SHAPE_CLASSES = tuple(_MAKERS)
"""The classes, in the order of their labels."""


def _stretched(rng: np.random.Generator, surface: _Surface, factors: np.ndarray, m: int) -> tuple[np.ndarray, ...]:
    """Points uniform by area on the stretched surface: areas grow by `det |normal / factors|`."""
    largest = 1 / factors.min()

    def accept(_: np.ndarray, normals: np.ndarray) -> np.ndarray:
        return rng.uniform(size=len(normals)) * largest < np.linalg.norm(normals / factors, axis=-1)

    points, normals = _accepted(m, surface, accept)
    return points * factors, _unit(normals / factors)


def procedural_shapes(
    seed: int,
    number: int,
    num_points: int,
    classes: Sequence[str] | None = None,
    *,
    stretch: float = 0.3,
    normalize: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws clouds of points on the surfaces of random solids, their normals and their classes.

    Args:
      seed: not negative; with the index of a cloud, all that it depends on.
      number: of clouds.
      num_points: of each cloud.
      classes: names out of `SHAPE_CLASSES`; None for all ten. Labels are positions in this sequence.
      stretch: largest relative change of the widths along x and y, at least 0 and below 1.
      normalize: whether each cloud is moved and scaled to mean zero and largest norm one.

    Returns:
      Points `[number, num_points, 3]` and unit normals `[number, num_points, 3]`, float32, and labels `[number]`,
      int32.

    Raises:
      ValueError: if a number is out of its range or a class is unknown.

    Example:
      >>> points, normals, labels = procedural_shapes(0, 4, 16, ("cone", "torus"))
      >>> points.shape, labels.tolist()
      ((4, 16, 3), [0, 1, 0, 1])
    """
    names = SHAPE_CLASSES if classes is None else tuple(classes)
    unknown = [name for name in names if name not in _MAKERS]
    if unknown or not names:
        raise ValueError(f"classes: got {unknown or names}; expected at least one of {', '.join(SHAPE_CLASSES)}.")
    if seed < 0 or number < 0 or num_points < 1 or not 0 <= stretch < 1:
        raise ValueError(
            f"got seed={seed}, number={number}, num_points={num_points}, stretch={stretch}; expected seed and number "
            "of zero or more, at least one point, and a stretch in [0, 1)."
        )
    labels = np.arange(number, dtype=np.int32) % len(names)
    points = np.empty((number, num_points, 3), np.float32)
    normals = np.empty((number, num_points, 3), np.float32)
    for i in range(number):
        rng = np.random.default_rng([seed, i])
        surface = _MAKERS[names[labels[i]]](rng)
        factors = np.array([*rng.uniform(1 - stretch, 1 + stretch, 2), 1.0])
        cloud, directions = _stretched(rng, surface, factors, num_points)
        if normalize:
            cloud = cloud - cloud.mean(axis=0)
            cloud = cloud / max(np.linalg.norm(cloud, axis=-1).max(), 1e-12)
        points[i], normals[i] = cloud, directions
    return points, normals, labels
