"""Polyphase anchoring: its laws bit by bit, ties, the published criterion's fault, gradients, frames.

The slow reference is written out in Python; every law is also shown to fail without the anchor.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.vision import (
    canonical_anchor,
    in_canonical_frame,
    polyphase_anchor,
    polyphase_energy,
    polyphase_restore,
)


def reference_energy(x, stride, p_norm=2.0):
    """Sum over each component, one entry after the other, without rounding."""
    energy = [[0.0] * stride for _ in range(stride)]
    for i, j in itertools.product(range(stride), repeat=2):
        energy[i][j] = math.fsum(abs(float(v)) ** p_norm for v in x[i::stride, j::stride].ravel())
    return np.array(energy)


def reference_phase(x, stride):
    return np.unravel_index(np.argmax(reference_energy(x, stride)), (stride, stride))


def all_shifts(height, width):
    return np.array(list(itertools.product(range(height), range(width))))


def orbit(x, shifts):
    x = np.asarray(x)
    return jnp.asarray(np.stack([np.roll(x, tuple(g), axis=(0, 1)) for g in shifts]))


def noise(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def unit_tokens(*shape, seed=0):
    x = noise(*shape, seed=seed)
    x = x - x.mean(axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))


def law_holds(x, stride, shifts, **options):
    """For each shift whether `A(S_g x) = S_{s k} A(x)` for the k that the phases give."""
    anchored, phases = jax.jit(lambda batch: polyphase_anchor(batch, stride, **options))(orbit(x, shifts))
    rest, phase = np.asarray(anchored[0]), np.asarray(phases[0])
    moved = shifts + phase - np.asarray(phases)
    assert shifts[0].tolist() == [0, 0]
    return np.array(
        [
            bool(np.all(m % stride == 0)) and np.array_equal(np.roll(rest, tuple(m), axis=(0, 1)), a)
            for m, a in zip(moved, np.asarray(anchored), strict=True)
        ]
    )


@pytest.mark.parametrize("p_norm", [2.0, 3.0])
def test_energy_agrees_with_the_reference(p_norm):
    x = noise(6, 9, 2)
    np.testing.assert_allclose(polyphase_energy(x, 3, p_norm=p_norm), reference_energy(x, 3, p_norm), rtol=1e-6)
    assert polyphase_energy(x[None], 1).shape == (1, 1, 1)


@pytest.mark.parametrize("criterion", ["exact", "norm", "projection"])
@pytest.mark.parametrize("stride", [2, 3, 4, 7])
def test_anchored_maps_differ_by_whole_strides(stride, criterion):
    x = noise(3 * stride, 2 * stride, 3, seed=stride)
    shifts = all_shifts(*x.shape[:2])
    assert law_holds(x, stride, shifts, criterion=criterion).all()
    anchored, phase = jax.jit(lambda x: polyphase_anchor(x, stride, criterion=criterion))(x)
    assert phase.dtype == jnp.int32
    np.testing.assert_array_equal(anchored, np.roll(x, tuple(-np.asarray(phase)), axis=(0, 1)))
    if criterion != "projection":
        assert tuple(phase.tolist()) == reference_phase(x, stride)
        # The strongest component is on the grid.
        assert reference_phase(np.asarray(anchored), stride) == (0, 0)


@pytest.mark.parametrize("anchor", [True, False])
def test_what_has_a_stride_commutes_only_after_the_anchor(anchor):
    """`F S_{s k} = S_k F`, and so `F(A(S_g x)) = S_k F(A(x))`; without A it fails for most g."""
    stride, x = 3, noise(9, 6, 2)
    shifts = all_shifts(9, 6)
    batch = orbit(x, shifts)
    maps = jax.jit(lambda x: polyphase_anchor(x, stride)[0])(batch) if anchor else batch
    coarse = np.asarray(maps[:, ::stride, ::stride])
    copies = {np.roll(coarse[0], (i, j), axis=(0, 1)).tobytes() for i in range(3) for j in range(2)}
    share = np.mean([one.tobytes() in copies for one in coarse])
    assert share == (1.0 if anchor else 1 / 9)


IMAGES = {
    "noise": lambda: noise(6, 12, 2),
    "constant": lambda: jnp.full((6, 12, 2), 0.3),
    "zero": lambda: jnp.zeros((6, 12, 2)),
    "signed zeros": lambda: jnp.where(noise(6, 12, 2) > 0, 0.0, -0.0),
    "one pixel": lambda: jnp.zeros((6, 12, 2)).at[4, 5, 1].set(-2.0),
    "ink": lambda: (noise(6, 12, 2) > 1).astype(jnp.float32),
    "signs": lambda: jnp.sign(noise(6, 12, 2)),
    "periodic": lambda: jnp.tile(noise(2, 4, 2), (3, 3, 1)),
    "sheared lattice": lambda: jnp.eye(6).repeat(2, axis=1)[:, :, None] * jnp.ones((1, 1, 2)),
    "unit tokens": lambda: unit_tokens(6, 12, 2),
    "faint": lambda: noise(6, 12, 2) * 1e-35,
    "bright": lambda: noise(6, 12, 2) * 1e37,
}


def test_canonical_images_are_one_for_all_shifts():
    shifts = all_shifts(6, 12)
    batch = jnp.stack([orbit(make(), shifts) for make in IMAGES.values()])
    for strides in ((), (3,), (2, 6)):
        run = jax.jit(lambda batch, s=strides: canonical_anchor(batch, s))
        anchored, origin = (np.asarray(x) for x in run(batch))
        for name, before, after, at in zip(IMAGES, np.asarray(batch), anchored, origin, strict=True):
            # Equal as numbers: zeros of either sign are one number.
            np.testing.assert_array_equal(after, np.broadcast_to(after[0], after.shape), name)
            back = [np.roll(b, tuple(-o), axis=(0, 1)) for b, o in zip(before, at, strict=True)]
            np.testing.assert_array_equal(after, back, name)
            if name in ("noise", "ink", "one pixel", "unit tokens", "faint", "bright"):
                np.testing.assert_array_equal(at, (at[0] + shifts) % [6, 12], name)
            if name not in ("constant", "zero"):
                assert len({b.tobytes() for b in before}) > 1, f"no shift moves {name}"


def test_exact_phases_keep_the_law_where_energies_tie():
    shifts, stride = all_shifts(6, 12), 3
    batch = jnp.stack([orbit(make(), shifts) for make in IMAGES.values()])
    anchored = np.asarray(jax.jit(lambda x: polyphase_anchor(x, stride)[0])(batch)) + np.float32(0)
    for name, after in zip(IMAGES, anchored, strict=True):
        copies = {np.roll(after[0], (3 * i, 3 * j), axis=(0, 1)).tobytes() for i in range(2) for j in range(4)}
        assert {one.tobytes() for one in after} <= copies, name


def test_a_tie_by_place_in_memory_breaks_the_law():
    """Entries of size one: all components have one energy, and the first in memory is not of the content's choosing."""
    x = IMAGES["signs"]()
    shifts = all_shifts(6, 12)
    for criterion, share in (("norm", 1 / 9), ("exact", 1.0)):
        assert law_holds(x, 3, shifts, criterion=criterion).mean() == pytest.approx(share)


def gap(x, stride, weight=None):
    x = np.asarray(x, np.float64)
    energy = np.sort(reference_energy(x if weight is None else x @ weight[:, None], stride).ravel())
    return (energy[-1] - energy[-2]) / energy[-1]


def test_published_criterion_is_degenerate_after_layer_norm():
    x = unit_tokens(14, 14, 64)
    shifts = all_shifts(14, 14)[::3]
    # All norms are the same up to rounding of the tokens themselves.
    assert gap(x, 7) < 1e-6
    assert not law_holds(x, 7, shifts, criterion="norm").all()
    assert law_holds(x, 7, shifts, criterion="projection").all()
    assert law_holds(x, 7, shifts, criterion="projection", p_norm=4.0).all()
    assert law_holds(x, 7, shifts, criterion="exact").all()
    # Before the normalisation the published criterion is sound.
    assert gap(noise(14, 14, 64), 7) > 1e-4
    assert law_holds(noise(14, 14, 64), 7, shifts, criterion="norm").all()


def test_energies_of_many_entries_do_not_overflow():
    """2^17 entries of size one, and one entry a thousandth larger: more than float32 sums can tell."""
    x = jnp.ones((64, 64, 32)).at[37, 22, 5].set(1 + 2**-10)
    phase, origin = jax.jit(lambda x: (polyphase_anchor(x, 4)[1], canonical_anchor(x)[1]))(x)
    assert phase.tolist() == [1, 2]
    assert origin.tolist() == [37, 22]


def test_gradient_is_that_of_the_rolled_image():
    x, weight = noise(6, 9, 2), noise(6, 9, 2, seed=1)
    for anchor in (lambda x: polyphase_anchor(x, 3), canonical_anchor):
        shift = tuple(jax.jit(anchor)(x)[1].tolist())
        assert shift != (0, 0)
        found = jax.jit(jax.grad(lambda x, a=anchor: jnp.sum(weight * jnp.sin(a(x)[0]))))(x)
        rolled = jax.grad(lambda x, s=shift: jnp.sum(weight * jnp.sin(jnp.roll(x, (-s[0], -s[1]), axis=(0, 1)))))(x)
        np.testing.assert_array_equal(found, rolled)


@pytest.mark.parametrize("framed", [True, False])
def test_any_map_is_equivariant_in_the_canonical_frame(framed):
    x, weight = noise(6, 8, 2), noise(6, 8, 2, seed=1)

    def function(x):
        return jnp.cumsum(x * weight, axis=0) ** 2

    run = jax.jit(jax.vmap(lambda x: in_canonical_frame(function, x, (2,)) if framed else function(x)))
    shifts = all_shifts(6, 8)
    found = np.asarray(run(orbit(x, shifts)))
    same = [np.array_equal(y, np.roll(found[0], tuple(g), axis=(0, 1))) for y, g in zip(found, shifts, strict=True)]
    assert sum(same) == (len(shifts) if framed else 1)


def test_coarse_maps_are_restored_to_their_grid():
    x, stride = noise(6, 9, 1), 3

    def coarse(x):
        anchored, origin = canonical_anchor(x, (stride,))
        return polyphase_restore(anchored[::stride, ::stride] ** 2, origin, stride=stride)

    shifts = all_shifts(2, 3)
    found = np.asarray(jax.jit(jax.vmap(coarse))(orbit(x, shifts * stride)))
    for y, g in zip(found, shifts, strict=True):
        np.testing.assert_array_equal(y, np.roll(found[0], tuple(g), axis=(0, 1)))
    # Without the frame the strided map of the moved image is the same map.
    assert not np.array_equal(found[0], found[1])


def test_dtype_is_kept(x64):
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64):
        x = noise(6, 8, 3).astype(dtype)
        batch = orbit(x, all_shifts(6, 8))
        anchored, origin = jax.jit(lambda x: canonical_anchor(x, (2,)))(batch)
        assert anchored.dtype == dtype
        assert origin.dtype == jnp.int32
        np.testing.assert_array_equal(anchored, np.broadcast_to(anchored[0], anchored.shape))
    # A difference beyond float32 is seen.
    x = jnp.ones((1, 4, 1), jnp.float64).at[0, 2, 0].add(1e-12)
    anchored = np.asarray(jax.jit(canonical_anchor)(orbit(x, all_shifts(1, 4)))[0])
    np.testing.assert_array_equal(anchored, np.broadcast_to(anchored[0], anchored.shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: polyphase_anchor(jnp.zeros((7, 6, 1)), 3), "divides both sides"),
        (lambda: polyphase_anchor(jnp.zeros((6, 6, 1)), 0), "positive stride"),
        (lambda: polyphase_anchor(jnp.zeros((6, 6)), 3), "height, width, channels"),
        (lambda: polyphase_anchor(jnp.zeros((6, 6, 1), jnp.uint8), 3), "floating-point"),
        (lambda: polyphase_anchor(jnp.zeros((6, 6, 1)), 3, criterion="max"), "criterion"),
        (lambda: polyphase_anchor(jnp.zeros((6, 6, 1)), 3, p_norm=3.0), "another criterion"),
        (lambda: polyphase_energy(jnp.zeros((6, 6, 1)), 3, p_norm=0.0), "p_norm"),
        (lambda: canonical_anchor(jnp.zeros((6, 6, 1)), (2, 3)), "divide the next"),
        (lambda: polyphase_restore(jnp.zeros((2, 6, 6, 1)), jnp.zeros(2, jnp.int32)), "same leading axes"),
        (lambda: jax.eval_shape(lambda x: in_canonical_frame(lambda x: x[::2], x), jnp.zeros((6, 6, 1))), "keep all"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
