"""Flow-equivariant recurrence: a slow NumPy reference, the law of the hidden state, both forms, mixing, failures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core.images import rotate_image
from equivariant_jax.flow import (
    FlowState,
    NextFrame,
    NextFrameConfig,
    apply_flow,
    cyclic_kernel,
    cyclic_kernel_init,
    cyclic_lifting_kernel,
    expand_kernels,
    flow_pool,
    flow_rnn_cell,
    flow_rnn_init,
    flow_scan,
    flow_state,
    fractional_shift,
    lab_frame,
    linear_flow_scan,
    mixing_offsets,
    next_frame_apply,
    next_frame_init,
    rotation_flow,
    torus_shift,
    velocity_grid,
)
from equivariant_jax.nn.convolution import convolution, convolution_init

TIMES = 6


def frames_like(seed, *shape, dtype=jnp.float32):
    return jax.random.uniform(jax.random.key(seed), shape, dtype)


def moved(frames, velocity, flow=torus_shift, start=0):
    velocity = jnp.asarray(velocity, jnp.float32)
    return jnp.stack([flow(frames[:, t], velocity, start + t) for t in range(frames.shape[1])], axis=1)


def roll(x, shift):
    """By (dx, dy) pixels, `[..., height, width, channels]`."""
    return np.roll(x, (int(shift[1]), int(shift[0])), axis=(-3, -2))


def slow_convolution(x, kernel):
    r = kernel.shape[0] // 2
    out = np.zeros((*x.shape[:-1], kernel.shape[-1]))
    for i in range(-r, r + 1):
        for j in range(-r, r + 1):
            out += roll(x, (-j, -i)) @ kernel[i + r, j + r]
    return out


def slow_recurrence(params, frames, velocities, mixing=0, period=None):
    """The paper's equation, bank by bank: s_t(nu) = relu(psi_1(nu) . sum W * s_{t-1}(nu') + U * f_t)."""
    kernels = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    frames = np.asarray(frames, np.float64)
    recurrent = kernels["recurrent"][None] if kernels["recurrent"].ndim == 4 else kernels["recurrent"]
    nu = [np.array(v) for v in velocities]
    offsets = [np.array(o) for o in np.ndindex(2 * mixing + 1, 2 * mixing + 1)]
    offsets = [o - mixing for o in offsets]
    shape = (frames.shape[0], *frames.shape[2:4], recurrent.shape[-1])
    state, found = [np.zeros(shape) for _ in nu], []
    for t in range(frames.shape[1]):
        drive = slow_convolution(frames[:, t], kernels["input"])
        after = []
        for v in nu:
            memory = np.zeros(shape)
            for d, offset in enumerate(offsets):
                for w, other in zip(nu, state, strict=True):
                    difference = w - v - offset
                    if period is not None:
                        difference = difference % period
                    if not np.any(difference):
                        memory += slow_convolution(other, recurrent[d])
            after.append(np.maximum(roll(memory, v) + drive, 0))
        state = after
        found.append(np.stack(state, axis=1))
    return np.stack(found, axis=1)


@pytest.mark.parametrize("form", ["comoving", "published"])
@pytest.mark.parametrize(("radius", "mixing", "period"), [(1, 0, None), (2, 0, None), (1, 1, None), (2, 1, 5)])
def test_equals_the_recurrence_bank_by_bank(x64, form, radius, mixing, period):
    velocities = velocity_grid(radius)
    offsets = (2 * mixing + 1) ** 2
    params = flow_rnn_init(jax.random.key(0), 2, 3, offsets=offsets, gain=2.0, dtype=jnp.float64)
    frames = frames_like(1, 2, 4, 5, 5, 2, dtype=jnp.float64)
    states = flow_scan(params, frames, velocities, form=form, mixing=mixing, period=period).outputs
    expected = slow_recurrence(params, frames, velocities, mixing, period)
    np.testing.assert_allclose(states, expected, atol=1e-12)
    assert np.abs(expected).max() > 0.3


def hidden_law_error(states, of_moved, velocities, velocity, flow=torus_shift):
    """max |s_t[psi f](nu) - psi_t s_t[f](nu - nu_hat)| over pairs of listed velocities, and their number."""
    errors, listed = [], {v: i for i, v in enumerate(velocities)}
    for i, nu in enumerate(velocities):
        j = listed.get(tuple(a - b for a, b in zip(nu, velocity, strict=True)))
        if j is not None:
            errors.append(np.abs(of_moved[:, :, i] - moved(states[:, :, j], velocity, flow)).max())
    return max(errors), len(errors)


@pytest.mark.parametrize("form", ["comoving", "published"])
def test_law_of_the_hidden_state(form):
    """Point 1 of the card: exact for every interior pair; one bank alone violates it by more than the state's rms."""
    params = flow_rnn_init(jax.random.key(0), 1, 8)
    frames, velocities = frames_like(1, 2, TIMES, 12, 10, 1), velocity_grid(2)
    scan = jax.jit(lambda frames: flow_scan(params, frames, velocities, form=form).outputs)
    states = scan(frames)
    for velocity in velocities:
        error, pairs = hidden_law_error(states, scan(moved(frames, velocity)), velocities, velocity)
        assert pairs == (5 - abs(velocity[0])) * (5 - abs(velocity[1]))
        assert error <= 1e-6
    still = velocity_grid(0)
    plain = flow_scan(params, frames, still).outputs
    of_moved = flow_scan(params, moved(frames, (1, 0)), still).outputs
    rms = float(jnp.sqrt(jnp.mean(plain**2)))
    assert np.abs(of_moved[:, :, 0] - moved(plain[:, :, 0], (1, 0))).max() > rms


def test_forms_agree_exactly_for_shifts():
    params = flow_rnn_init(jax.random.key(0), 1, 8)
    frames = frames_like(1, 2, TIMES, 9, 9, 1)
    one, other = (
        flow_scan(params, frames, velocity_grid(1), form=form, outputs="max") for form in ("comoving", "published")
    )
    np.testing.assert_array_equal(one.outputs, other.outputs)
    np.testing.assert_array_equal(lab_frame(one.state, velocity_grid(1)), other.state.banks)


@pytest.mark.parametrize("mixing", [0, 1])
@pytest.mark.parametrize("n", [5, 7])
def test_on_the_closed_torus_pooled_features_move_along(n, mixing):
    velocities = velocity_grid((n - 1) // 2)
    params = flow_rnn_init(jax.random.key(0), 1, 4, offsets=(2 * mixing + 1) ** 2)
    frames = frames_like(1, 2, 5, n, n, 1)
    pool = jax.jit(lambda f: flow_scan(params, f, velocities, outputs="max", mixing=mixing, period=n).outputs)
    for velocity in ((1, 2), (3, -4), (11, 6)):
        error = np.abs(pool(moved(frames, velocity)) - moved(pool(frames), velocity)).max()
        assert error <= 1e-5 * np.abs(pool(frames)).max()
    # With the boundary banks missing, pooling breaks the law.
    fewer = jax.jit(lambda f: flow_scan(params, f, velocity_grid(1), outputs="max", mixing=mixing).outputs)
    assert np.abs(fewer(moved(frames, (3, -4))) - moved(fewer(frames), (3, -4))).max() > 1e-2


@pytest.mark.parametrize("n", [5, 7])
@pytest.mark.parametrize("form", ["comoving", "published"])
def test_advancing_roll_outs_are_equivariant_and_published_ones_are_not(n, form):
    """Point 2 of the card."""
    frames = frames_like(1, 2, 4, n, n, 1)
    errors = {}
    for decode in ("advance", "published"):
        config = NextFrameConfig(velocity_grid((n - 1) // 2), channels=8, decoder_layers=2, decode=decode, form=form)
        params = next_frame_init(jax.random.key(0), config)
        predict = jax.jit(lambda frames, params=params, config=config: next_frame_apply(params, frames, 5, config))
        plain = predict(frames)
        for velocity in ((1, 2), (3, -4), (11, 6)):
            difference = predict(moved(frames, velocity)) - moved(plain, velocity, start=4)
            errors.setdefault(decode, []).append(np.linalg.norm(difference) / np.linalg.norm(plain))
    assert max(errors["advance"]) <= 1e-5
    assert min(errors["published"]) > 1e-2


def test_decoding_follows_its_definition(x64):
    config = NextFrameConfig(velocity_grid(1), channels=3, decoder_layers=1)
    params = next_frame_init(jax.random.key(0), config, dtype=jnp.float64)
    frames = frames_like(1, 1, 3, 5, 5, 1, dtype=jnp.float64)

    def decode(banks):
        features = np.asarray(banks).max(axis=1)
        hidden = np.maximum(slow_convolution(features, np.asarray(params["decoder"][0])), 0)
        return slow_convolution(hidden, np.asarray(params["decoder"][1]))

    def last_state(frames):
        return slow_recurrence(params["cell"], frames, config.velocities)[:, -1]

    # advance: decode psi_1(nu) s_t(nu), and the result is the next frame.
    seen = np.asarray(frames)
    for _ in range(3):
        ahead = np.stack([roll(b, v) for b, v in zip(last_state(seen)[0], config.velocities, strict=True)])[None]
        seen = np.concatenate([seen, decode(ahead)[:, None]], axis=1)
    np.testing.assert_allclose(next_frame_apply(params, frames, 3, config), seen[:, 3:], atol=1e-12)
    # published: the last frame twice, then each prediction.
    seen = np.concatenate([frames, frames[:, -1:]], axis=1)
    for _ in range(3):
        seen = np.concatenate([seen, decode(last_state(seen))[:, None]], axis=1)
    published = dataclasses.replace(config, decode="published")
    np.testing.assert_allclose(next_frame_apply(params, frames, 3, published), seen[:, 4:], atol=1e-12)


def test_one_given_frame_is_enough():
    config = NextFrameConfig(velocity_grid(1), channels=3, decoder_layers=1)
    params = next_frame_init(jax.random.key(0), config)
    frames = frames_like(1, 2, 1, 5, 5, 1)
    assert next_frame_apply(params, frames, 2, config).shape == (2, 2, 5, 5, 1)


def test_scan_goes_on_where_another_stopped():
    params, velocities = flow_rnn_init(jax.random.key(0), 1, 4), velocity_grid(1)
    frames = frames_like(1, 2, TIMES, 6, 6, 1)
    whole = flow_scan(params, frames, velocities)
    first = flow_scan(params, frames[:, :2], velocities)
    rest = flow_scan(params, frames[:, 2:], velocities, state=first.state)
    np.testing.assert_array_equal(rest.outputs, whole.outputs[:, 2:])
    state = flow_state(2, velocities, 6, 6, 4, jnp.float32)
    for t in range(TIMES):
        state = flow_rnn_cell(params, state, frames[:, t], velocities)
    np.testing.assert_allclose(state.banks, whole.state.banks, atol=1e-6)
    assert int(state.time) == TIMES


def test_memory_of_the_backward_pass_is_one_state_per_frame():
    params, velocities = flow_rnn_init(jax.random.key(0), 1, 8), velocity_grid(1)
    size = 9 * 2 * 8 * 8 * 8 * 4  # bytes of a state

    def per_frame(remat):
        def temporaries(times):
            def loss(params, frames):
                return jnp.sum(flow_scan(params, frames, velocities, outputs="none", remat=remat).state.banks ** 2)

            frames = jnp.zeros((2, times, 8, 8, 1))
            return jax.jit(jax.grad(loss)).lower(params, frames).compile().memory_analysis().temp_size_in_bytes

        return (temporaries(40) - temporaries(20)) / (20 * size)

    # Of the frames themselves and U * f there is a ninth of a state each.
    assert 0.9 < per_frame(True) < 1.5
    # Without rematerialisation also where ReLU is on, a byte for each number.
    assert per_frame(True) + 0.1 < per_frame(False) < per_frame(True) + 0.6


# --- rotations


def rotation_setup(orientations, step, dtype=jnp.float32):
    weights = cyclic_kernel_init(jax.random.key(0), 3, 3, orientations, lifting=False, dtype=dtype)
    first = cyclic_kernel_init(jax.random.key(1), 1, 3, orientations, lifting=True, dtype=dtype)
    params = {"input": cyclic_lifting_kernel(first, orientations), "recurrent": cyclic_kernel(weights)}
    velocities = tuple((step * k,) for k in range(round(360 / step)))
    return params, velocities, rotation_flow(orientations)


def smooth(seed, times, size, dtype=jnp.float32):
    noise = jax.random.normal(jax.random.key(seed), (1, times, size, size, 1), dtype)
    at = (np.arange(size) - (size - 1) / 2) / size
    window = np.exp(-20 * (at[:, None] ** 2 + at[None, :] ** 2))
    blur = np.exp(-0.5 * np.add.outer(np.arange(-2, 3) ** 2, np.arange(-2, 3) ** 2) / 1.5)
    kernel = jnp.asarray(blur / blur.sum(), dtype)[:, :, None, None]
    return convolution(noise, kernel) * jnp.asarray(window, dtype)[None, None, :, :, None]


@pytest.mark.parametrize("orientations", [4, 8])
def test_steerable_convolutions_commute_with_quarter_turns(orientations):
    params, _, flow = rotation_setup(orientations, 90.0)
    x = frames_like(0, 2, 7, 7, 1)
    quarter = jnp.array([90.0])
    lifted = convolution(x, params["input"], boundary="zero")
    of_turned = convolution(rotate_image(x, jnp.array(90.0)), params["input"], boundary="zero")
    np.testing.assert_allclose(of_turned, flow(lifted, quarter, 1), atol=2e-6)
    deeper = convolution(lifted, params["recurrent"], boundary="zero")
    of_turned = convolution(flow(lifted, quarter, 1), params["recurrent"], boundary="zero")
    np.testing.assert_allclose(of_turned, flow(deeper, quarter, 1), atol=5e-6)
    assert np.abs(flow(deeper, quarter, 1) - deeper).max() > 0.1


def test_steerable_kernels_turn_their_channels():
    """A rotation by 360 / n of the input rolls the orientations: exact in the continuum, here where pixels allow it."""
    params, _, _ = rotation_setup(8, 90.0)
    kernel = np.asarray(params["input"]).reshape(3, 3, 1, 8, 3)
    for g in range(8):
        ring = [(1, 2), (0, 2), (0, 1), (0, 0), (1, 0), (2, 0), (2, 1), (2, 2)]  # counter-clockwise
        if g % 2 == 0:
            for place, (i, j) in enumerate(ring):
                other = ring[(place - g) % 8]
                np.testing.assert_allclose(kernel[i, j, 0, g], kernel[*other, 0, 0], atol=1e-6)
    assert np.abs(kernel[:, :, 0, 1] - kernel[:, :, 0, 0]).max() > 1e-2


@pytest.mark.parametrize("form", ["comoving", "published"])
def test_quarter_turns_obey_the_law(form):
    params, velocities, flow = rotation_setup(4, 90.0)
    frames = frames_like(1, 1, 5, 8, 8, 1)
    scan = jax.jit(lambda f: flow_scan(params, f, velocities, flow=flow, form=form, boundary="zero").outputs)
    states = scan(frames)
    turned = jnp.stack([rotate_image(frames[:, t], jnp.array(90.0 * t)) for t in range(5)], axis=1)
    of_turned = scan(turned)
    quarter = jnp.array([90.0])
    for i in range(4):
        expected = jnp.stack([flow(states[:, t, (i - 1) % 4], quarter, t) for t in range(5)], axis=1)
        np.testing.assert_allclose(of_turned[:, :, i], expected, atol=2e-5 * float(jnp.abs(states).max()))


def test_forms_differ_between_quarter_turns_and_the_comoving_is_nearer_to_the_law():
    params, velocities, flow = rotation_setup(8, 45.0)
    frames = smooth(2, 8, 15)
    turned = jnp.stack([rotate_image(frames[:, t], jnp.array(45.0 * t)) for t in range(8)], axis=1)
    errors = {}
    for form in ("comoving", "published"):
        scan = jax.jit(
            lambda f, form=form: flow_scan(params, f, velocities, flow=flow, form=form, boundary="zero").outputs
        )
        plain, of_turned = scan(frames)[:, -1], scan(turned)[:, -1]
        expected = jnp.stack([flow(plain[:, (i - 1) % 8], jnp.array([45.0]), 7) for i in range(8)], axis=1)
        errors[form] = float(jnp.linalg.norm(of_turned - expected) / jnp.linalg.norm(expected))
    assert 1e-3 < errors["comoving"] < errors["published"] < 1.0


# --- the linear recurrence


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize(("n", "velocities"), [(8, velocity_grid(1)), (7, ((0.0, 0.0), (0.5, 0.25), (-1.3, 2.0)))])
def test_linear_scan_equals_the_sequential_one(x64, n, velocities, diagonal):
    key_input, key_recurrent = jax.random.split(jax.random.key(0))
    recurrent = convolution_init(key_recurrent, 3, 4, 4, dtype=jnp.float64)
    params = {"input": convolution_init(key_input, 3, 2, 4, dtype=jnp.float64), "recurrent": recurrent}
    if diagonal:
        params["recurrent"] = recurrent * jnp.eye(4)[None, None]
    frames = frames_like(1, 2, TIMES, n, n, 2, dtype=jnp.float64)
    expected = flow_scan(
        params, frames, velocities, flow=fractional_shift, form="published", activation=lambda x: x
    ).outputs
    given = params | {"recurrent": jnp.einsum("ijcc->ijc", recurrent)} if diagonal else params
    np.testing.assert_allclose(linear_flow_scan(given, frames, velocities), expected, atol=1e-11)


def test_linear_scan_obeys_the_law_at_fractional_velocities(x64):
    params = {
        "input": convolution_init(jax.random.key(0), 3, 1, 3, dtype=jnp.float64),
        "recurrent": convolution_init(jax.random.key(1), 3, 1, 3, dtype=jnp.float64)[:, :, 0],
    }
    velocities = ((0.0, 0.0), (0.4, -0.7), (0.8, -1.4))
    frames = frames_like(2, 1, TIMES, 9, 7, 1, dtype=jnp.float64)
    shifted = jnp.stack([fractional_shift(frames[:, t], jnp.array([0.4, -0.7]), t) for t in range(TIMES)], axis=1)
    states, of_shifted = linear_flow_scan(params, frames, velocities), linear_flow_scan(params, shifted, velocities)
    for bank in (1, 2):
        for t in range(TIMES):
            expected = fractional_shift(states[:, t, bank - 1], jnp.array([0.4, -0.7]), t)
            np.testing.assert_allclose(of_shifted[:, t, bank], expected, atol=1e-12)


# --- a flow of the user's own, parameters, input that cannot be right


def test_any_one_parameter_group_can_be_a_flow():
    """Brightness: psi_t(nu) x = exp(nu t) x commutes with linear convolutions and ReLU."""

    def brighter(x, velocity, t):
        return x * jnp.exp(velocity[0] * t).astype(x.dtype)

    params, velocities = flow_rnn_init(jax.random.key(0), 1, 4), ((-0.2,), (0.0,), (0.2,))
    frames = frames_like(1, 1, TIMES, 5, 5, 1)
    scan = jax.jit(lambda f: flow_scan(params, f, velocities, flow=brighter).outputs)
    states, of_brighter = scan(frames), scan(moved(frames, (0.2,), brighter))
    error, pairs = hidden_law_error(states, of_brighter, velocities, (0.2,), brighter)
    assert pairs == 2
    assert error <= 1e-5


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_published_sizes(radius):
    config = NextFrameConfig(velocity_grid(radius))
    shapes = jax.eval_shape(lambda key: next_frame_init(key, config), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 739_584


def test_published_sizes_of_rotations():
    velocities = tuple((10.0 * k,) for k in range(-4, 5))
    config = NextFrameConfig(velocities, channels=32, orientations=36, motion="rotation", boundary="zero")
    shapes = jax.eval_shape(lambda key: next_frame_init(key, config), jax.random.key(0))
    assert [shapes["cell"][name].size for name in ("input", "recurrent")] == [192, 221_184]
    assert sum(leaf.size for leaf in shapes["decoder"]) == 47_786_112
    expanded = jax.eval_shape(lambda params: expand_kernels(params, config), shapes)
    assert expanded["cell"]["recurrent"].shape == (3, 3, 1152, 1152)


def test_linen_module_is_the_function():
    config = NextFrameConfig(velocity_grid(1), channels=3, decoder_layers=1)
    frames = frames_like(1, 2, 3, 5, 5, 1)
    variables = NextFrame(config, 2).init(jax.random.key(0), frames)
    expected = next_frame_apply(variables["params"]["predictor"], frames, 2, config)
    np.testing.assert_array_equal(NextFrame(config, 2).apply(variables, frames), expected)


def test_wrong_input_is_named():
    params, frames = flow_rnn_init(jax.random.key(0), 1, 4), jnp.zeros((1, 2, 5, 5, 1))
    with pytest.raises(ValueError, match=r"frames: got shape .*expected \[batch, time"):
        flow_scan(params, frames[0], velocity_grid(1))
    with pytest.raises(ValueError, match="form"):
        flow_scan(params, frames, velocity_grid(1), form="other")
    with pytest.raises(ValueError, match="velocities: got"):
        flow_scan(params, frames, ())
    with pytest.raises(ValueError, match="distinct"):
        flow_scan(params, frames, ((0.0, 0.0), (0.0, 0.0)))
    with pytest.raises(ValueError, match="with mixing"):
        flow_scan(params, frames, velocity_grid(1), mixing=1)
    with pytest.raises(ValueError, match="cast one"):
        flow_scan(params, frames.astype(jnp.bfloat16), velocity_grid(1))
    with pytest.raises(ValueError, match="how: got"):
        flow_pool(jnp.zeros((1, 2, 2, 1)), how="median")
    with pytest.raises(ValueError, match=r"x: got shape"):
        apply_flow(jnp.zeros((2, 4, 4, 1)), velocity_grid(1), 1)
    with pytest.raises(ValueError, match="mixing"):
        mixing_offsets(velocity_grid(1), -1)
    with pytest.raises(ValueError, match="multiples of 45"):
        NextFrameConfig(((10.0,),), orientations=8, motion="rotation")
    with pytest.raises(ValueError, match="expected 1"):
        NextFrameConfig(orientations=8)
    with pytest.raises(ValueError, match="at least one"):
        next_frame_apply({}, jnp.zeros((1, 0, 4, 4, 1)), 1, NextFrameConfig())


def test_ties_share_the_gradient_of_the_maximum():
    gradient = jax.grad(lambda s: flow_pool(s).sum())(jnp.ones((4, 2, 2, 1)))
    np.testing.assert_array_equal(gradient, np.full((4, 2, 2, 1), 0.25))


def test_state_is_a_tree_of_arrays():
    state = FlowState(jnp.zeros((1, 1, 2, 2, 1)), jnp.zeros((), jnp.int32))
    assert len(jax.tree.leaves(state)) == 2
