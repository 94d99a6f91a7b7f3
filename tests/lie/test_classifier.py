"""The affine classifier: published sizes, normalisation that does not see the canvas, its module, averaged passes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.lie import (
    GL2,
    SL2,
    SO2,
    AffineClassifier,
    AffineClassifierConfig,
    AffineKernelConfig,
    GroupSamples,
    affine_classifier_apply,
    affine_classifier_init,
    averaged_probabilities,
    moment_norm,
    moment_norm_init,
    published_classifier,
    published_samples,
)
from tests.lie.compiled import sample_polar

SMALL = AffineClassifierConfig(
    AffineKernelConfig(GL2, size=3, reach=1.2, basis="gaussian", window="none", separable=True),
    channels=4, head=8, num_classes=3,
)  # fmt: skip


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("group", "number"), [(SL2, 339_102), (GL2, 339_282)])
def test_published_sizes(group, number):
    config = published_classifier(group)
    params, statistics = jax.eval_shape(lambda key: affine_classifier_init(key, config), jax.random.key(0))
    assert count(params) == number
    assert count(params["lift"]) == 9_940
    assert count([params[name] for name in ("hidden", "norm", "out")]) == 13_322
    assert not statistics


def test_published_network_shrinks_as_published():
    config = dataclasses.replace(published_classifier(SL2), channels=2, head=4)
    samples = published_samples(jax.random.key(0), 3, SL2)
    params, _ = affine_classifier_init(jax.random.key(1), config)
    shape = jax.eval_shape(
        lambda x: affine_classifier_apply(params, {}, x, (samples, samples), config)[0], jnp.zeros((2, 40, 40, 1))
    ).shape
    assert shape == (2, 10)
    # 12 pixels: 8 after the lifting, 4 after the block's pooling, too few for the last kernel.
    with pytest.raises(ValueError, match="smaller than the kernel"):
        affine_classifier_apply(params, {}, jnp.zeros((2, 12, 12, 1)), (samples, samples), config)


def ink(canvas, offset, seed=0):
    """Six by six pixels of ink on an empty canvas."""
    block = np.random.default_rng(seed).uniform(0.2, 1.0, size=(6, 6))
    image = np.zeros((1, canvas, canvas, 1))
    image[0, offset : offset + 6, offset : offset + 6, 0] = block
    return jnp.asarray(image)


def logits(config, images, seed=0):
    key_samples, key_params = jax.random.split(jax.random.key(seed))
    samples = sample_polar(key_samples, 2, GL2, scale=0.15, proposal="ball", dtype="float64")
    params, statistics = affine_classifier_init(key_params, config, dtype="float64")
    if "norms" in params:
        # Biases that are not zero, as after training.
        for name in params["norms"]:
            params["norms"][name]["bias"] = params["norms"][name]["bias"] - 0.1
    return jax.jit(lambda x: affine_classifier_apply(params, statistics, x, (samples, samples), config)[0])(images)


@pytest.mark.parametrize(("normalisation", "same"), [("moments", True), ("published", False)])
def test_an_empty_border_does_not_matter(x64, normalisation, same):
    config = dataclasses.replace(SMALL, normalisation=normalisation, wide=6)
    # The four convolutions reach two pixels each, the last twice that: 10 pixels of border hold all of it.
    inner, wider = logits(config, ink(26, 10)), logits(config, ink(34, 14))
    difference = float(jnp.abs(inner - wider).max() / jnp.abs(inner).max())
    assert (difference < 1e-10) is same


def test_contrast_drops_out(x64):
    config = dataclasses.replace(SMALL, normalisation="moments")
    full, faint = logits(config, ink(26, 10)), logits(config, 0.3 * ink(26, 10))
    np.testing.assert_allclose(full, faint, rtol=1e-4)
    batch = dataclasses.replace(SMALL, normalisation="batch")
    assert float(jnp.abs(logits(batch, ink(26, 10)) - logits(batch, 0.3 * ink(26, 10))).max()) > 1e-2


def features_at(positions, matrices):
    """A smooth function on the plane and the group, zero far away; `[..., channels]`."""
    centre = matrices @ np.array([0.3, 0.1])
    square = np.sum((np.linalg.inv(matrices) @ (positions - centre)[..., None])[..., 0] ** 2, axis=-1)
    return np.stack([np.exp(-4 * square), -0.5 * np.exp(-6 * square) * matrices[..., 0, 0]], axis=-1)


def test_size_is_a_ratio_of_invariant_integrals(x64):
    """`norm(L_g F) == L_g norm(F)`: over all rotations, and a plane larger than the features, for stretches of it."""
    line = np.linspace(-4, 4, 129)
    u = np.stack(np.meshgrid(line, -line), axis=-1)[:, :, None]
    turns = np.linspace(-np.pi, np.pi, 24, endpoint=False)
    matrices = np.stack([[[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]] for t in turns])
    samples = GroupSamples(jnp.asarray(matrices), jnp.asarray(np.swapaxes(matrices, 1, 2)), jnp.zeros(len(turns)))
    params = moment_norm_init(2, dtype="float64")
    at_origin = {}
    for name, g in {"rest": np.eye(2), "turn": matrices[17], "stretch": 1.5 * np.eye(2)}.items():
        back = np.linalg.inv(g)
        # Samples are of SO(2): a stretch acts on positions, and on the group by commuting with it.
        pulled = (back @ u[..., None])[..., 0]
        relative = back / np.sqrt(np.linalg.det(back)) @ matrices[None, None]
        moved = features_at(pulled, relative)
        out = moment_norm(params, jnp.asarray(moved), samples, SO2)
        at_origin[name] = np.asarray(out[64, 64])
    np.testing.assert_allclose(at_origin["stretch"], at_origin["rest"], rtol=1e-6)
    np.testing.assert_allclose(at_origin["turn"], np.roll(at_origin["rest"], 5, axis=0), rtol=1e-6, atol=1e-12)
    # Layer normalisation of the same features sees how much of the plane is empty.
    mean_square = [np.mean(np.square(features_at(u / s, matrices[None, None]))) for s in (1.0, 1.5)]
    assert mean_square[1] > 2 * mean_square[0]


def test_zero_features_stay_zero_with_finite_gradients():
    samples = sample_polar(jax.random.key(0), 2, SL2)
    params = {"scale": jnp.ones(3), "bias": jnp.full(3, 0.4)}

    def total(x):
        return jnp.sum(moment_norm(params, x, samples, SL2, jax.nn.gelu) ** 2)

    zero = jnp.zeros((4, 4, 2, 3))
    assert moment_norm(params, zero, samples, SL2, jax.nn.gelu).tolist() == zero.tolist()
    assert bool(jnp.all(jnp.isfinite(jax.jit(jax.grad(total))(zero))))
    with pytest.raises(ValueError, match="expected"):
        moment_norm(params, jnp.zeros((4, 4, 3, 3)), samples, SL2)
    with pytest.raises(ValueError, match="at least 1"):
        moment_norm_init(0)


def test_another_width_after_the_block_gets_a_shortcut():
    samples = sample_polar(jax.random.key(0), 2, GL2)
    config = dataclasses.replace(SMALL, wide=6)
    params, statistics = affine_classifier_init(jax.random.key(1), config)
    assert params["shortcut"]["kernel"].shape == (4, 6)
    assert params["hidden"]["kernel"].shape == (6, 8)
    images = jax.random.uniform(jax.random.key(2), (2, 12, 12, 1))

    def loss(params):
        return jnp.sum(affine_classifier_apply(params, statistics, images, (samples, samples), config)[0] ** 2)

    gradient = jax.jit(jax.grad(loss))(params)
    assert float(jnp.abs(gradient["shortcut"]["kernel"]).max()) > 0
    assert "shortcut" not in affine_classifier_init(jax.random.key(1), SMALL)[0]


@pytest.mark.parametrize("normalisation", ["moments", "batch"])
def test_module_agrees_with_the_function(normalisation):
    config = dataclasses.replace(SMALL, normalisation=normalisation)
    samples = sample_polar(jax.random.key(0), 2, GL2)
    images = jax.random.uniform(jax.random.key(2), (4, 12, 12, 1))
    module = AffineClassifier(config)
    variables = module.init(jax.random.key(1), images, (samples, samples))
    params, statistics = variables["params"]["classifier"], variables["batch_stats"]["statistics"]
    expected, after = affine_classifier_apply(params, statistics, images, (samples, samples), config, training=True)
    out, updated = module.apply(variables, images, (samples, samples), training=True, mutable=["batch_stats"])
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    assert jax.tree.all(jax.tree.map(jnp.allclose, updated["batch_stats"]["statistics"], after))
    assert bool(after) is (normalisation == "batch")


def test_averaged_probabilities_are_the_mean_over_sets():
    params, statistics = affine_classifier_init(jax.random.key(1), SMALL)
    images = jax.random.uniform(jax.random.key(2), (4, 12, 12, 1))
    sets = jax.vmap(lambda key: sample_polar(key, 2, GL2))(jax.random.split(jax.random.key(3), 3))
    found = averaged_probabilities(params, statistics, images, (sets, sets), SMALL)
    single = []
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], sets)
        single.append(jax.nn.softmax(affine_classifier_apply(params, statistics, images, (one, one), SMALL)[0]))
    np.testing.assert_allclose(found, np.mean(single, axis=0), rtol=1e-5)
    assert float(np.std(single, axis=0).max()) > 1e-4


def test_dropout_needs_a_key_and_keeps_the_mean():
    config = dataclasses.replace(SMALL, dropout=0.5)
    samples = sample_polar(jax.random.key(0), 2, GL2)
    params, statistics = affine_classifier_init(jax.random.key(1), config)
    images = jax.random.uniform(jax.random.key(2), (2, 12, 12, 1))
    run = jax.jit(
        lambda key: affine_classifier_apply(params, statistics, images, (samples, samples), config, key=key)[0]
    )
    dropped = jnp.stack([run(jax.random.key(i)) for i in range(400)])
    sure = affine_classifier_apply(params, statistics, images, (samples, samples), config)[0]
    error = jnp.std(dropped, axis=0) / 20
    assert bool(jnp.all(jnp.abs(jnp.mean(dropped, axis=0) - sure) < 5 * error))
    assert float(error.min()) > 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="positive numbers"):
        AffineClassifierConfig(wide=0)
    with pytest.raises(ValueError, match="normalisation"):
        AffineClassifierConfig(normalisation="layer")
    with pytest.raises(ValueError, match="downsample"):
        AffineClassifierConfig(downsample="sum")
    samples = sample_polar(jax.random.key(0), 2, GL2)
    params, statistics = affine_classifier_init(jax.random.key(1), SMALL)
    with pytest.raises(ValueError, match="images: got shape"):
        affine_classifier_apply(params, statistics, jnp.zeros((4, 12, 12, 3)), (samples, samples), SMALL)
