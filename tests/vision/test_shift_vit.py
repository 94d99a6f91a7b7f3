"""Shift-equivariant transformers: published sizes, exact laws, the faults they mend, metric, modules, learning."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from equivariant_jax.vision import (
    PyramidConfig,
    ShiftViT,
    ShiftViTSegmenter,
    ViTConfig,
    ordinary_twin,
    shift_consistency,
    shift_vit_apply,
    shift_vit_dense,
    shift_vit_init,
    swin_config,
    twins_config,
    vit_config,
)

VIT = ViTConfig(patch=4, width=16, depth=2, heads=2, num_classes=5, grid=(3, 6))
TWINS = PyramidConfig(patch=2, widths=(8, 16), depths=(2, 2), heads=(2, 2), window=3, reductions=(2, 1), num_classes=5)
SWIN = dataclasses.replace(TWINS, kind="swin")
SMALL = {"vit": VIT, "twins": TWINS, "swin": SWIN}
HEIGHT, WIDTH = 12, 24


@functools.cache
def parameters(config, dtype=jnp.float32):
    """Random, with weights large enough that attention is not flat and no bias is zero."""
    params = jax.jit(lambda key: shift_vit_init(key, config))(jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [
        x + jax.random.normal(k, x.shape, x.dtype) * np.asarray(0.2 / np.sqrt(max(1, x.ndim - 1)), x.dtype)
        for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.map(lambda x: x.astype(dtype), structure.unflatten(drawn))


def images(number=4, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(2), (number, HEIGHT, WIDTH, 3)).astype(dtype)


def random_shifts(number, batch, seed=3):
    shifts = jax.random.randint(jax.random.key(seed), (number, batch, 2), 0, jnp.array([HEIGHT, WIDTH])[None, None])
    assert len(np.unique(np.asarray(shifts).reshape(-1, 2), axis=0)) > number // 2
    return shifts


def measured(config, x=None, number=100, dtype=jnp.float32):
    x = images(2, dtype) if x is None else x
    params = parameters(config, x.dtype)
    run = jax.jit(lambda p, x, s: shift_consistency(lambda x: shift_vit_apply(p, x, config), x, s))
    return run(params, x, random_shifts(number, len(x)))


def count(config):
    shapes = jax.eval_shape(lambda key: shift_vit_init(key, config), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_published_sizes():
    # From the paper's code; the others are the published networks whose sizes theirs share.
    assert count(vit_config("tiny")) == 5_681_896
    assert count(ordinary_twin(vit_config("tiny"))) == 5_717_416
    assert count(swin_config("tiny")) == 28_288_354
    for config, millions in (
        (ordinary_twin(vit_config("small")), 22.1),
        (ordinary_twin(vit_config("base")), 86.6),
        (twins_config("small"), 24.1),
        (twins_config("base"), 56.1),
        (twins_config("large"), 99.3),
        (swin_config("small"), 49.6),
        (swin_config("base"), 87.8),
    ):
        assert round(count(config) / 1e6, 1) == millions
    # Anchors and boundaries have no parameters.
    assert count(ordinary_twin(twins_config("small"))) == count(twins_config("small"))
    widths, heads = (96, 192, 384, 768), (3, 6, 12, 24)
    assert (twins_config("base").widths, twins_config("base").heads) == (widths, heads)
    assert all(config.multiple == 224 for config in (twins_config("small"), swin_config("tiny")))
    assert vit_config("base", num_classes=7).num_classes == 7


@pytest.mark.parametrize("config", [vit_config("tiny"), twins_config("base"), swin_config("tiny")])
def test_published_shapes(config):
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(lambda key: shift_vit_init(key, config), jax.random.key(0))
    assert jax.eval_shape(lambda p, x: shift_vit_apply(p, x, config), params, image).shape == (1, 1000)
    assert jax.eval_shape(lambda p, x: shift_vit_dense(p, x, config), params, image).shape == (1, 224, 224, 1000)


@pytest.mark.parametrize("name", SMALL)
def test_no_shift_changes_a_bit_of_the_logits(name):
    found = measured(SMALL[name])
    assert found.change.tolist() == [0.0] * 2
    assert found.consistency.tolist() == [1.0] * 2
    # The same network without the anchor, and the ordinary one.
    for other in (dataclasses.replace(SMALL[name], anchoring="none"), ordinary_twin(SMALL[name])):
        assert float(measured(other, number=5).change.min()) > 1e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_thousand_images_in_low_precision(dtype):
    found = measured(VIT, images(1000, dtype), number=3)
    assert float(found.consistency.min()) == 1.0
    assert float(found.change.max()) == 0.0
    assert len(np.unique(found.labels)) > 1


@pytest.mark.parametrize("name", SMALL)
def test_symmetric_images_are_no_exception(name):
    tile = jax.random.normal(jax.random.key(4), (HEIGHT // 3, WIDTH // 4, 3))
    hard = [
        jnp.full((HEIGHT, WIDTH, 3), 0.5),
        jnp.tile(tile, (3, 4, 1)),
        jnp.zeros((HEIGHT, WIDTH, 3)).at[3, 4:9].set(1.0),
        jnp.sign(images(1)[0]),
    ]
    found = measured(SMALL[name], jnp.stack(hard), number=10)
    assert found.change.tolist() == [0.0] * 4


def test_published_criterion_fails_on_unit_tokens_and_the_remedies_hold():
    """Anchors inside of Twins, float32: the tokens of each stage come from a layer normalisation.

    Rounding decides how far the published criterion goes wrong on one image; twelve make the worst of them steady.
    """
    layers = dataclasses.replace(TWINS, anchoring="layers")
    params = shift_vit_init(jax.random.key(0), layers)

    def change(**options):
        config = dataclasses.replace(layers, **options)
        run = jax.jit(lambda x, s: shift_consistency(lambda x: shift_vit_apply(params, x, config), x, s).change)
        return float(run(images(12), random_shifts(100, 12)).max())

    assert change(criterion="norm") > 1e-3
    assert change(criterion="projection") <= 1e-5
    assert change(anchoring="input") == 0.0


@pytest.mark.parametrize("name", SMALL)
def test_anchored_layers_keep_the_law_up_to_rounding(name):
    config = dataclasses.replace(SMALL[name], anchoring="layers")
    assert float(measured(config).change.max()) <= 1e-5


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("anchoring", ["input", "layers", "none"])
def test_labels_of_pixels_move_with_the_image(name, anchoring):
    config = dataclasses.replace(SMALL[name], anchoring=anchoring)
    params, x = parameters(config), np.asarray(images(2))
    run = jax.jit(lambda x: shift_vit_dense(params, x, config))
    rest = np.asarray(run(x))
    assert rest.shape == (2, HEIGHT, WIDTH, 5)
    worst = 0.0
    for g in [(1, 0), (0, 1), (5, 17), (7, 2), (11, 23)]:
        moved = np.asarray(run(np.roll(x, g, axis=(1, 2))))
        worst = max(worst, np.abs(moved - np.roll(rest, g, axis=(1, 2))).max() / np.abs(rest).max())
    assert {"input": worst == 0.0, "layers": worst <= 1e-5, "none": worst > 1e-2}[anchoring]


def test_finer_maps_keep_their_mean_and_the_values_between():
    """Interpolation on the torus: a map that is linear along a row stays so between the patches' centres."""
    config = dataclasses.replace(VIT, anchoring="none", num_classes=2)
    params = parameters(config)
    x = images(1)
    fine = np.asarray(jax.jit(lambda x: shift_vit_dense(params, x, config))(x))[0]
    # Centres of patches of four pixels lie between pixels 1 and 2.
    coarse = (fine[1::4] + fine[2::4])[:, 1::4] / 4 + (fine[1::4] + fine[2::4])[:, 2::4] / 4
    np.testing.assert_allclose(fine.mean((0, 1)), fine.reshape(3, 4, 6, 4, 2).mean((1, 3)).mean((0, 1)), rtol=1e-5)
    assert coarse.shape == (3, 6, 2)
    inner = fine[:, 2:6]  # from the first centre of a row to the second
    np.testing.assert_allclose(inner[:, 1:] - inner[:, :-1], (inner[:, 1:2] - inner[:, :1]).repeat(3, 1), atol=1e-5)


def count_primitive(jaxpr, name):
    inner = [
        getattr(value, "jaxpr", value)
        for equation in jaxpr.eqns
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
    ]
    own = sum(equation.primitive.name == name for equation in jaxpr.eqns)
    return own + sum(count_primitive(one, name) for one in inner if hasattr(one, "eqns"))


def arguments_of_maximum(config, shape):
    """How often the traced network looks for a strongest component."""
    params = jax.eval_shape(lambda key: shift_vit_init(key, config), jax.random.key(0))
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    program = jax.make_jaxpr(lambda p, x: shift_vit_apply(p, x, config))(params, image)
    return count_primitive(program.jaxpr, "argmax")


def test_only_what_the_composition_rule_asks_for_is_anchored():
    image = (1, 224, 224, 3)
    twins = twins_config("small", anchoring="layers", criterion="norm")
    # The embedding, the blocks of windows and the subsampled ones of the first three stages, and one for all windows of
    # the last, whose global blocks have no stride; no merge by two, since the block before it has an even stride.
    assert arguments_of_maximum(twins, image) == 1 + 2 * (1 + 1 + 5) + 1
    # Windows of 7 need one anchor for each stage, and do not protect the merge.
    assert arguments_of_maximum(swin_config("tiny", anchoring="layers", criterion="norm"), image) == 1 + 4 + 3
    assert arguments_of_maximum(vit_config("tiny", anchoring="layers", criterion="norm"), image) == 1
    assert arguments_of_maximum(ordinary_twin(twins), image) == 0


def test_zero_filled_shifts_are_not_covered():
    params, x = parameters(VIT), images(1)
    moved = jnp.zeros_like(x).at[:, :, 3:].set(x[:, :, :-3])
    run = jax.jit(lambda x: shift_vit_apply(params, x, VIT))
    assert float(jnp.abs(run(moved) - run(x)).max()) > 1e-3


def test_consistency_agrees_with_a_loop():
    config = ordinary_twin(VIT)
    params, x, shifts = parameters(config), images(6), random_shifts(5, 6)
    apply = jax.jit(lambda x: shift_vit_apply(params, x, config))
    found = jax.jit(lambda x, s: shift_consistency(lambda x: shift_vit_apply(params, x, config), x, s))(x, shifts)
    rest, same, change = np.asarray(apply(x)), np.zeros(6), np.zeros(6)
    for g in np.asarray(shifts):
        moved = np.stack([np.roll(one, tuple(s), axis=(0, 1)) for one, s in zip(np.asarray(x), g, strict=True)])
        logits = np.asarray(apply(moved))
        same += (logits.argmax(-1) == rest.argmax(-1)) / len(shifts)
        change = np.maximum(change, np.abs(logits - rest).max(-1) / np.abs(rest).max(-1))
    np.testing.assert_allclose(found.consistency, same, rtol=1e-6)
    np.testing.assert_allclose(found.change, change, rtol=1e-4)
    assert found.labels.shape == (5, 6)
    # Shifts that images share are those shifts given to each.
    shared = shift_consistency(apply, x, shifts[:, 0])
    each = shift_consistency(apply, x, jnp.broadcast_to(shifts[:, :1], shifts.shape))
    np.testing.assert_array_equal(shared.labels, each.labels)


@pytest.mark.parametrize("name", SMALL)
def test_dtypes_and_leading_axes(name, x64):
    config = SMALL[name]
    for dtype in ("bfloat16", "float32", "float64"):
        x = jax.ShapeDtypeStruct((2, 3, HEIGHT, WIDTH, 3), dtype)
        params = jax.eval_shape(lambda d=dtype: parameters.__wrapped__(config, d))
        out = jax.eval_shape(lambda p, x: shift_vit_apply(p, x, config), params, x)
        assert (out.shape, out.dtype) == ((2, 3, 5), dtype)
        out = jax.eval_shape(lambda p, x: shift_vit_dense(p, x, config), params, x)
        assert (out.shape, out.dtype) == ((2, 3, HEIGHT, WIDTH, 5), dtype)


def test_drop_path_drops_whole_branches_and_keeps_their_mean():
    config = ViTConfig(patch=4, width=8, depth=2, heads=2, num_classes=3, drop_path=0.5)
    params, x = parameters(config), images(2)
    run = jax.jit(lambda x, key: shift_vit_apply(params, x, config, key=key))
    sure = jax.jit(lambda x: shift_vit_apply(params, x, config))(x)
    found = np.stack([np.asarray(run(x, jax.random.key(i))) for i in range(60)])
    # The first block is never dropped; the last has two branches: four outcomes for each image.
    outcomes = [len(np.unique(found[:, i].round(4), axis=0)) for i in range(2)]
    assert outcomes == [4, 4]
    assert not np.isclose(found, np.asarray(sure)[None]).all(axis=(0, 2)).any()
    still = dataclasses.replace(config, drop_path=0.0)
    np.testing.assert_array_equal(jax.jit(lambda x: shift_vit_apply(params, x, still, key=jax.random.key(0)))(x), sure)


def test_mean_pooling_has_no_token():
    config = dataclasses.replace(VIT, pool="mean")
    assert "token" not in shift_vit_init(jax.random.key(0), config)
    assert measured(config, number=10).change.tolist() == [0.0] * 2


@pytest.mark.parametrize("name", ["vit", "twins"])
def test_modules_agree_with_the_functions(name):
    config, x = SMALL[name], images(2)
    variables = jax.jit(ShiftViT(config).init)(jax.random.key(5), x)
    params = variables["params"]["transformer"]
    for module, function in ((ShiftViT(config), shift_vit_apply), (ShiftViTSegmenter(config), shift_vit_dense)):
        found = jax.jit(module.apply)(variables, x)
        np.testing.assert_array_equal(found, jax.jit(lambda p, x, f=function: f(p, x, config))(params, x))


def test_learning_carries_over_to_all_shifts():
    """Three patterns seen in one place only; the twin of the same size is lost where they were moved."""
    side, classes = 12, 3
    config = ViTConfig(patch=3, width=16, depth=2, heads=2, num_classes=classes, channels_in=1, grid=(4, 4))
    patterns = jax.random.normal(jax.random.key(0), (classes, side, side, 1))

    def batch(key, number=32):
        key_label, key_noise = jax.random.split(key)
        labels = jax.random.randint(key_label, (number,), 0, classes)
        return patterns[labels] + 0.3 * jax.random.normal(key_noise, (number, side, side, 1)), labels

    def train(config):
        optimiser = optax.adam(3e-3)

        def step(carry, key):
            params, state = carry
            x, labels = batch(key)

            def loss(params):
                logits = shift_vit_apply(params, x, config)
                return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

            updates, state = optimiser.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        params = shift_vit_init(jax.random.key(1), config)
        keys = jax.random.split(jax.random.key(2), 100)
        return jax.lax.scan(step, (params, optimiser.init(params)), keys)[0][0]

    def accuracies(config):
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer step
            params = jax.jit(lambda: train(config))()
        x, labels = batch(jax.random.key(3), 200)
        shifts = jax.random.randint(jax.random.key(4), (10, 200, 2), 0, side)
        apply = jax.jit(lambda x: shift_vit_apply(params, x, config))
        found = shift_consistency(apply, x, shifts)
        clean = jnp.mean(jnp.argmax(apply(x), axis=-1) == labels)
        moved = np.mean(np.asarray(found.labels == labels[None]))
        return float(clean), float(moved), float(jnp.mean(found.consistency))

    clean, moved, consistency = accuracies(config)
    plain_clean, plain_moved, _ = accuracies(ordinary_twin(config))
    assert consistency == 1.0
    assert clean > 0.95
    assert abs(clean - moved) < 1e-6  # shares in other precisions
    assert plain_clean > 0.95
    assert plain_moved < moved - 0.2


X = jnp.zeros((1, 12, 24, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ViTConfig(heads=5), "heads that divide"),
        (lambda: ViTConfig(anchoring="output"), "anchoring"),
        (lambda: ViTConfig(position="sine"), "depthwise or learned"),
        (lambda: PyramidConfig(kind="pvt"), "twins"),
        (lambda: PyramidConfig(depths=(2, 2)), "one length"),
        (lambda: vit_config("huge"), "tiny"),  # type: ignore[arg-type]
        (lambda: twins_config("tiny"), "small"),  # type: ignore[arg-type]
        (lambda: shift_vit_apply(parameters(VIT), X[:, :11], VIT), "multiples of 4"),
        (lambda: shift_vit_apply(parameters(VIT), X[..., :2], VIT), "channels_in|width, 3"),
        (
            lambda: shift_vit_apply(parameters(ordinary_twin(VIT)), X[:, :8], ordinary_twin(VIT)),
            "positions are learned",
        ),
        (lambda: shift_consistency(lambda x: x[:, 0, 0], X, jnp.zeros((2, 3, 2), jnp.int32)), "at least one"),
        (lambda: shift_consistency(lambda x: x[:, 0, 0], X, jnp.zeros((2, 2))), "integers"),
        (lambda: shift_consistency(lambda x: x, X, jnp.zeros((2, 2), jnp.int32)), "logits"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_all_shifts_of_one_image():
    """Every one of the torus's shifts, one by one."""
    params, x = parameters(SWIN), np.asarray(images(1))
    run = jax.jit(lambda x: shift_vit_apply(params, x, SWIN))
    rest = np.asarray(run(x))
    for g in itertools.product(range(HEIGHT), range(WIDTH)):
        np.testing.assert_array_equal(run(np.roll(x, g, axis=(1, 2))), rest)
