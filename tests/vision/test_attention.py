"""Attention layers: agreement with slow references, the shifts they commute with, and those that they do not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.vision import (
    attention_init,
    depthwise_position,
    depthwise_position_init,
    global_attention,
    in_canonical_frame,
    patch_embed,
    patch_embed_init,
    subsampled_attention,
    window_attention,
)

HEADS, CHANNELS, WINDOW = 2, 6, 3


def draw(key, tree):
    """Replaces every leaf by standard normal numbers, so that no bias is zero and attention is not flat."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


def layer(*, window=None, stride=1, dtype=jnp.float32):
    params = attention_init(jax.random.key(0), CHANNELS, HEADS, window=window, stride=stride, dtype=dtype)
    return draw(jax.random.key(1), params)


def image(height, width, channels=CHANNELS, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(2), (height, width, channels), dtype)


def dense(params, x):
    return x @ np.asarray(params["kernel"]) + np.asarray(params["bias"])


def reference_attention(params, tokens, source, bias=None):
    """Loops over heads and pairs: softmax(Q K^T / sqrt(d)) V."""
    query, both = dense(params["query"], tokens), dense(params["key_value"], source)
    out, depth = np.zeros_like(query), CHANNELS // HEADS
    for head in range(HEADS):
        own = slice(head * depth, (head + 1) * depth)
        key, value = both[:, own], both[:, CHANNELS:][:, own]
        for i in range(len(tokens)):
            score = np.array([query[i, own] @ key[j] / np.sqrt(depth) for j in range(len(source))])
            if bias is not None:
                score = score + bias[head, i]
            weight = np.exp(score - score.max())
            out[i, own] = (weight / weight.sum()) @ value
    return dense(params["out"], out)


def reference_windows(params, x, offset, boundary):
    """Every token asks the tokens of its window, found one by one on the torus."""
    height, width, _ = x.shape
    x, out = np.asarray(x), np.zeros_like(x)
    table = np.asarray(params["relative"]) if "relative" in params else None
    for top, left in itertools.product(range(0, height, WINDOW), range(0, width, WINDOW)):
        inside = list(itertools.product(range(WINDOW), range(WINDOW)))
        place = [(top + i + offset, left + j + offset) for i, j in inside]
        tokens = np.array([x[i % height, j % width] for i, j in place])
        bias = np.zeros((HEADS, len(place), len(place)))
        for (a, p), (b, q) in itertools.product(enumerate(place), enumerate(place)):
            if table is not None:
                row = (p[0] - q[0] + WINDOW - 1) * (2 * WINDOW - 1) + p[1] - q[1] + WINDOW - 1
                bias[:, a, b] += table[row]
            if boundary == "zero" and (p[0] // height, p[1] // width) != (q[0] // height, q[1] // width):
                bias[:, a, b] -= 100
        for (i, j), row in zip(place, reference_attention(params, tokens, tokens, bias), strict=True):
            out[i % height, j % width] = row
    return out


@pytest.mark.parametrize(("offset", "boundary"), [(0, "circular"), (1, "circular"), (1, "zero")])
@pytest.mark.parametrize("relative", [False, True])
def test_windows_agree_with_the_reference(x64, offset, boundary, relative):
    params = layer(window=WINDOW if relative else None, dtype="float64")
    x = image(6, 9, dtype="float64")
    run = jax.jit(lambda p, x: window_attention(p, x, window=WINDOW, heads=HEADS, offset=offset, boundary=boundary))
    expected = reference_windows(params, x, offset, boundary)
    np.testing.assert_allclose(run(params, x), expected, rtol=1e-11, atol=1e-11)


def test_subsampled_and_global_agree_with_the_reference(x64):
    params, x = layer(stride=2, dtype="float64"), image(4, 6, dtype="float64")
    kernel, bias = (np.asarray(params["reduce"][name]) for name in ("kernel", "bias"))
    coarse = np.zeros((2, 3, CHANNELS))
    for i, j in itertools.product(range(2), range(3)):
        for a, b in itertools.product(range(2), repeat=2):
            coarse[i, j] += np.asarray(x)[2 * i + a, 2 * j + b] @ kernel[a, b]
        coarse[i, j] += bias
    np.testing.assert_allclose(patch_embed(params["reduce"], x), coarse, rtol=1e-11, atol=1e-11)
    centred = coarse - coarse.mean(-1, keepdims=True)
    source = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    source = source * np.asarray(params["norm"]["scale"]) + np.asarray(params["norm"]["bias"])
    tokens = np.asarray(x).reshape(-1, CHANNELS)
    expected = reference_attention(params, tokens, source.reshape(-1, CHANNELS))
    found = jax.jit(lambda p, x: subsampled_attention(p, x, heads=HEADS))(params, x)
    np.testing.assert_allclose(found.reshape(-1, CHANNELS), expected, rtol=1e-11, atol=1e-11)
    # Without a stride it is global attention.
    plain = layer(dtype="float64")
    expected = reference_attention(plain, tokens, tokens)
    found = jax.jit(lambda p, x: subsampled_attention(p, x, heads=HEADS))(plain, x)
    np.testing.assert_allclose(found.reshape(-1, CHANNELS), expected, rtol=1e-11, atol=1e-11)
    found = jax.jit(lambda p, x: global_attention(p, x, heads=HEADS))(plain, jnp.asarray(tokens))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


WINDOWED, REDUCED = layer(window=WINDOW), layer(stride=3)
LAYERS = {
    "patches": (lambda x: patch_embed(REDUCED["reduce"], x), 3, 3),
    "windows": (lambda x: window_attention(WINDOWED, x, window=WINDOW, heads=HEADS), 3, 1),
    "moved windows": (lambda x: window_attention(WINDOWED, x, window=WINDOW, heads=HEADS, offset=1), 3, 1),
    "subsampled": (lambda x: subsampled_attention(REDUCED, x, heads=HEADS), 3, 1),
    "position": (lambda x: depthwise_position(draw(jax.random.key(3), depthwise_position_init(
        jax.random.key(0), CHANNELS)), x), 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_commute_with_shifts_by_their_stride_and_no_others(name):
    function, stride, coarse = LAYERS[name]
    x = np.asarray(image(6, 9))
    shifts = list(itertools.product(range(6), range(9)))
    run = jax.jit(jax.vmap(function))
    found = np.asarray(run(jnp.asarray(np.stack([np.roll(x, g, axis=(0, 1)) for g in shifts]))))
    # Sums of 54 products of standard normal numbers, in another order.
    tolerance = 64 * np.finfo(np.float32).eps * np.abs(found).max()
    for g, y in zip(shifts, found, strict=True):
        error = np.abs(y - np.roll(found[0], (g[0] // coarse, g[1] // coarse), axis=(0, 1))).max()
        if g[0] % stride == g[1] % stride == 0:
            assert error < tolerance
        else:
            assert error > 1e-2


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("framed", [True, False])
def test_windows_with_a_restored_frame_commute_with_all_shifts(offset, framed):
    """`F~(S_g x) = S_g F~(x)` to the last bit, for every g."""

    def attend(x):
        return window_attention(WINDOWED, x, window=WINDOW, heads=HEADS, offset=offset)

    run = jax.jit(lambda x: in_canonical_frame(attend, x, (WINDOW,)) if framed else attend(x))
    x = np.asarray(image(6, 9))
    rest = np.asarray(run(x))
    shifts = list(itertools.product(range(6), range(9)))
    same = [np.array_equal(run(np.roll(x, g, axis=(0, 1))), np.roll(rest, g, axis=(0, 1))) for g in shifts]
    if framed:
        assert all(same)
    else:
        assert sum(same) <= len(shifts) // WINDOW**2


def test_a_border_breaks_the_law():
    """What ordinary networks have: zeros around the image, and masks between its opposite sides."""
    code = draw(jax.random.key(3), depthwise_position_init(jax.random.key(0), CHANNELS))
    functions = (
        lambda x: depthwise_position(code, x, boundary="zero"),
        lambda x: window_attention(WINDOWED, x, window=WINDOW, heads=HEADS, offset=1, boundary="zero"),
    )
    for function in functions:
        run, x = jax.jit(function), image(6, 9)
        moved = run(jnp.roll(x, (3, 3), axis=(0, 1)))
        assert float(jnp.abs(moved - jnp.roll(run(x), (3, 3), axis=(0, 1))).max()) > 1e-2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patch_embed_init(jax.random.key(0), 0, 3, 8), "positive numbers"),
        (lambda: patch_embed(REDUCED["reduce"], image(7, 9)), "divides both sides"),
        (lambda: patch_embed(REDUCED["reduce"], image(6, 9, 4)), "for these parameters"),
        (lambda: depthwise_position_init(jax.random.key(0), 8, size=2), "odd"),
        (lambda: attention_init(jax.random.key(0), 8, 3), "divide channels"),
        (lambda: window_attention(WINDOWED, image(6, 8), window=3, heads=2), "divides both sides"),
        (lambda: window_attention(WINDOWED, image(6, 8), window=2, heads=2), "bias table"),
        (lambda: window_attention(WINDOWED, image(6, 9), window=3, heads=2, offset=3), "below the window"),
        (lambda: window_attention(WINDOWED, image(6, 9), window=3, heads=4), "divisor of the channels"),
        (lambda: subsampled_attention(REDUCED, image(4, 9), heads=2), "divides both sides"),
        (lambda: global_attention(REDUCED, jnp.zeros((5, 4)), heads=2), "tokens"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
