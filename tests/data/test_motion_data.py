"""Springs against loops and eigenvectors, windows of pedestrians and molecules, joints, faults by name."""

import ase
import ase.io
import numpy as np
import pytest

from equivariant_jax.data import AtomicStructure, MissingDataError, data_directory, write_extxyz
from equivariant_jax.data.pedestrians import (
    PEDESTRIAN_SCENES,
    PedestrianTracks,
    alone,
    pedestrian_windows,
    pedestrians,
    read_pedestrians,
)
from equivariant_jax.data.simulators import evolve_springs, simulate_springs
from equivariant_jax.data.trajectories import (
    MolecularTrajectory,
    Skeleton,
    joint_positions,
    read_dft_trajectory,
    read_expmaps,
    read_trajectory,
    slice_trajectory,
    split_in_time,
    trajectory_of,
)

# Springs


@pytest.fixture(scope="module")
def springs():
    return simulate_springs(6, seed=3)


def test_springs_have_the_published_shape_and_statistics(springs):
    assert springs.positions.shape == springs.velocities.shape == (6, 49, 5, 3)
    many = simulate_springs(2000, seed=0, num_steps=2, sample_every=1)
    assert many.couplings.mean() * 25 / 20 == pytest.approx(0.5, abs=0.02)
    assert many.positions.std() == pytest.approx(0.5, rel=0.02)
    np.testing.assert_allclose(np.linalg.norm(many.velocities, axis=-1), 0.5, rtol=0.01)
    few = simulate_springs(2, seed=0, num_steps=2, sample_every=1)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:2])


def test_springs_agree_with_loops():
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(2, 1, 3, 2))
    c = np.array([[[0, 1, 1], [1, 0, 0], [1, 0, 0]]], bool)
    before = x.copy(), v.copy()
    out = evolve_springs(x, v, c, num_steps=30, sample_every=10, stiffness=50.0, max_force=20.0)
    np.testing.assert_array_equal((x, v), before)
    x, v, frames, clipped = x[0].copy(), v[0].copy(), [], False
    for step in range(30):
        if step:
            x = x + 0.001 * v
        if step and step % 10 == 0:
            frames.append((x, v))
        force = np.array([sum(-50.0 * c[0, i, j] * (x[i] - x[j]) for j in range(3)) for i in range(3)])
        clipped |= bool(np.abs(force).max() > 20)
        v = v + 0.001 * np.clip(force, -20, 20)
    assert clipped
    for frame, (x, v) in enumerate(frames):
        np.testing.assert_allclose(out.positions[0, frame], x, atol=1e-12)
        np.testing.assert_allclose(out.velocities[0, frame], v, atol=1e-12)


def test_springs_follow_the_eigenvectors_of_the_laplacian():
    many = simulate_springs(3, seed=5, num_steps=2, sample_every=1)
    # Frame 0 is step 1, with the velocity of half a step before.
    start, velocity = many.positions[:, 0], many.velocities[:, 0]
    out = evolve_springs(start, velocity, many.couplings, num_steps=4000, sample_every=1000)
    laplacian = 0.1 * (np.eye(5) * many.couplings.sum(-1)[:, None, :] - many.couplings)
    square, modes = np.linalg.eigh(laplacian)
    omega = np.sqrt(np.maximum(square, 0))[..., None]
    for frame in range(3):
        t = 1.0 * (frame + 1)
        sine = np.where(omega > 1e-6, np.sin(omega * t) / np.where(omega > 1e-6, omega, 1.0), t)
        x, v = modes.transpose(0, 2, 1) @ start, modes.transpose(0, 2, 1) @ velocity
        expected = modes @ (np.cos(omega * t) * x + sine * v)
        # Symplectic Euler is of first order: dt times the acceleration (of about one) times t, twice for safety.
        np.testing.assert_allclose(out.positions[:, frame], expected, atol=2 * 0.001 * t)


def test_springs_commute_with_moves_and_keep_momentum(springs):
    momentum = springs.velocities.sum(axis=2)
    np.testing.assert_allclose(momentum, np.broadcast_to(momentum[:, :1], momentum.shape), atol=1e-10)
    rng = np.random.default_rng(1)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(5)
    start = springs.positions[:, 0], springs.velocities[:, 0], springs.couplings
    moved = (start[0] @ q.T + 2.0)[:, order], (start[1] @ q.T)[:, order], start[2][:, order][:, :, order]
    first, second = (evolve_springs(*s, num_steps=400, sample_every=100) for s in (start, moved))
    np.testing.assert_allclose(second.positions, (first.positions @ q.T + 2.0)[:, :, order], atol=1e-12)
    free = evolve_springs(start[0], start[1], np.zeros_like(start[2]), num_steps=400, sample_every=100)
    assert np.abs(free.positions - first.positions).max() > 1e-3  # the springs are felt


def test_springs_refuse_what_makes_no_sense():
    x, c = np.zeros((1, 2, 3)), np.zeros((1, 2, 2), bool)
    with pytest.raises(ValueError, match="symmetric"):
        evolve_springs(x, x, np.array([[[False, True], [False, False]]]))
    with pytest.raises(ValueError, match=r"expected bool \(1, 2, 2\)"):
        evolve_springs(x, x, c.astype(float))
    with pytest.raises(ValueError, match="multiple"):
        evolve_springs(x, x, c, num_steps=300)
    with pytest.raises(ValueError, match=r"`\[simulations, n, d\]`"):
        evolve_springs(x, x[..., :2], c)
    with pytest.raises(ValueError, match="probability"):
        simulate_springs(1, seed=0, probability=1.5)


# Pedestrians


def row(frame, person, x, y):
    return f"{frame:.1f} {person:.1f} Pedestrian {'-1.0 ' * 10}{x} -1.0 {y} -1.0"


def write_scene(folder, name, people, frames=10, first=0):
    lines = [row(first + t, p, p + 0.1 * t, 2 * p) for t in range(frames) for p in people]
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pedestrians").mkdir()
    for number, names in enumerate(PEDESTRIAN_SCENES.values()):
        for name in names:
            write_scene(tmp_path / "pedestrians", name, range(number + 1))
    for name in ("crowds_zara03", "uni_examples"):
        write_scene(tmp_path / "pedestrians", name + "_train", [1])
        write_scene(tmp_path / "pedestrians", name + "_val", [1], first=20)
    return tmp_path


def test_reads_rows_in_any_order(tmp_path):
    path = tmp_path / "scene.txt"
    path.write_text("\n".join([row(3, 2, 0.5, 1.5), "", row(1, 7, 2.0, 3.0), row(3, 1, 4.0, 5.0)]))
    tracks = read_pedestrians(path)
    assert tracks.frames.tolist() == [1, 3, 3]
    assert tracks.people.tolist() == [7, 1, 2]
    np.testing.assert_array_equal(tracks.positions, [[2, 3], [4, 5], [0.5, 1.5]])


def slow_windows(tracks, length):
    """Every person and first frame by itself."""
    at = {(int(f), int(p)): x for f, p, x in zip(*tracks, strict=True)}
    found = {}
    for frame, person in at:
        times = [(frame + t, person) for t in range(length)]
        if all(key in at for key in times):
            found.setdefault(frame, {})[person] = np.stack([at[key] for key in times])
    return {frame: [people[p] for p in sorted(people)] for frame, people in sorted(found.items())}


def test_windows_agree_with_loops():
    rng = np.random.default_rng(0)
    keys = np.array([(f, p) for f in range(30) for p in range(6) if rng.random() < 0.85])
    tracks = PedestrianTracks(keys[:, 0], keys[:, 1], rng.normal(size=(len(keys), 2)))
    windows = pedestrian_windows(tracks, past=3, future=2)
    expected = slow_windows(tracks, 5)
    assert windows.frames.tolist() == list(expected)
    for positions, mask, people in zip(windows.positions, windows.mask, expected.values(), strict=True):
        np.testing.assert_array_equal(positions[mask], np.stack(people))
        assert mask[: len(people)].all()
        assert np.all(positions[~mask] == 0)
    single = alone(windows)
    assert single.positions.shape == (windows.mask.sum(), 1, 5, 2)
    np.testing.assert_array_equal(single.positions[:, 0], windows.positions[windows.mask])


def test_leaves_one_scene_out(folder):
    test = pedestrians("zara2", "test", folder, past=3, future=2)
    assert test.positions.shape == (6, 5, 5, 2)  # five people, ten frames
    assert test.mask.all()
    train = pedestrians("zara2", "train", folder, past=3, future=2)
    # Five sequences of eight frames (four fifths) and two of ten: windows begin at four and six of them.
    assert train.mask.sum() == 4 * (1 + 2 + 3 + 3 + 4) + 2 * 6
    validation = pedestrians("zara2", "validation", folder, past=1, future=1)
    assert validation.mask.sum() == 1 * (1 + 2 + 3 + 3 + 4) + 2 * 9
    halved = pedestrians("eth", "test", folder, past=3, future=2, divide=2.0)
    np.testing.assert_allclose(2 * halved.positions, pedestrians("eth", "test", folder, past=3, future=2).positions)
    same = pedestrians("hotel", "test", folder, past=3, future=2, divide=2.0)
    np.testing.assert_array_equal(same.positions, pedestrians("hotel", "test", folder, past=3, future=2).positions)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.0 2.0 Pedestrian 3.0", "line 1: got 4 words"),
        (row(1, 2, 3, 4).replace("Pedestrian", "Car"), "'Pedestrian' third"),
        (row(1, 2, "nan", 4), "expected whole numbers, and metres"),
        (row(1.5, 2, 3, 4), "expected whole numbers"),
        (row(1, 2, "x", 4), "line 1: could not convert"),
        (row(1, 2, 3, 4) + "\n" + row(1, 2, 3, 4), "line 2: person 2 comes twice in frame 1"),
    ],
)
def test_faults_of_pedestrian_files_are_named(tmp_path, text, message):
    (tmp_path / "scene.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_pedestrians(tmp_path / "scene.txt")


def test_other_faults_of_pedestrians_are_named(tmp_path):
    with pytest.raises(ValueError, match="got scene 'zara9'"):
        pedestrians("zara9", "test", tmp_path)
    with pytest.raises(MissingDataError, match="biwi_eth"):
        pedestrians("eth", "test", tmp_path)
    with pytest.raises(ValueError, match="at least 1 and 0"):
        pedestrian_windows(PedestrianTracks(np.arange(2), np.arange(2), np.zeros((2, 2))), past=0)


COUNTS = {
    "eth": (364, 1.075, 2.282), "hotel": (1197, 0.319, 0.614), "univ": (24334, 0.524, 1.165),
    "zara1": (2356, 0.427, 0.952), "zara2": (5910, 0.324, 0.724),
}  # fmt: skip


FILES = data_directory()


@pytest.mark.skipif(
    FILES is None or not (FILES / "pedestrians/biwi_eth.txt").is_file(), reason="needs the ETH and UCY files"
)
@pytest.mark.parametrize("scene", list(COUNTS))
def test_counts_and_constant_velocity_of_the_published_files(scene):
    positions = alone(pedestrians(scene, "test")).positions[:, 0]
    step = positions[:, 7] - positions[:, 6]
    straight = positions[:, 7:8] + step[:, None] * np.arange(1, 13)[None, :, None]
    error = np.linalg.norm(straight - positions[:, 8:], axis=-1)
    assert (len(positions), round(error.mean(), 3), round(error[:, -1].mean(), 3)) == COUNTS[scene]


# Molecules


def water(times=500, seed=0):
    positions = np.random.default_rng(seed).normal(size=(times, 3, 3)).cumsum(axis=0)
    return MolecularTrajectory(positions, np.array([8, 1, 1], np.int32))


def test_slices_every_twentieth_step_without_hydrogens():
    trajectory = water()
    windows = slice_trajectory(trajectory)
    assert windows.shape == (5, 1, 20, 3)  # from 20, 40, ..., 100: 100 + 19 * 20 is below 500, 120 + 19 * 20 is not
    for w, start in enumerate(range(20, 120, 20)):
        for t in range(20):
            np.testing.assert_array_equal(windows[w, 0, t], trajectory.positions[start + 20 * t, 0])
    kept = slice_trajectory(trajectory, past=2, future=1, every=3, start=0, start_every=5, hydrogens=True)
    assert kept.shape == (99, 3, 3, 3)
    np.testing.assert_array_equal(kept[98, 2], trajectory.positions[[490, 493, 496], 2])
    assert slice_trajectory(water(100)).shape == (0, 1, 20, 3)


def test_parts_follow_each_other():
    parts = split_in_time(water(803))
    assert [len(part.positions) for part in parts] == [501, 101, 201]
    np.testing.assert_array_equal(np.concatenate([part.positions for part in parts]), water(803).positions)


def test_three_file_formats_hold_one_trajectory(tmp_path):
    trajectory = water(5)
    np.savez(tmp_path / "water_dft.npz", R=trajectory.positions, z=trajectory.numbers.astype(np.uint8), name="water")
    write_extxyz(tmp_path / "water.xyz", [AtomicStructure(trajectory.numbers, x) for x in trajectory.positions])
    ase.io.write(tmp_path / "water.traj", [ase.Atoms(trajectory.numbers, x) for x in trajectory.positions])
    for name in ("water_dft.npz", "water.xyz", "water.traj"):
        found = read_trajectory(tmp_path / name)
        np.testing.assert_array_equal(found.positions, trajectory.positions)
        np.testing.assert_array_equal(found.numbers, trajectory.numbers)


def test_faults_of_trajectories_are_named(tmp_path):
    def saved(**arrays):
        np.savez(tmp_path / "x_dft.npz", **arrays)
        return tmp_path / "x_dft.npz"

    z = np.array([8, 1])
    with pytest.raises(ValueError, match="missing"):
        read_dft_trajectory(saved(R=np.zeros((2, 2, 3))))
    with pytest.raises(ValueError, match=r"R: got float64 \(2, 3, 3\)"):
        read_dft_trajectory(saved(R=np.zeros((2, 3, 3)), z=z))
    with pytest.raises(ValueError, match="not every number is finite"):
        read_dft_trajectory(saved(R=np.full((2, 2, 3), np.nan), z=z))
    with pytest.raises(ValueError, match="expected atomic numbers"):
        read_dft_trajectory(saved(R=np.zeros((2, 2, 3)), z=np.array([8, 300])))
    first, second = (AtomicStructure(np.array([n, 1]), np.eye(3)[:2]) for n in (8, 7))
    with pytest.raises(ValueError, match="frame 1: atoms"):
        trajectory_of([first, second])
    with pytest.raises(ValueError, match="got none"):
        trajectory_of([])
    with pytest.raises(ValueError, match="none is left"):
        slice_trajectory(MolecularTrajectory(np.zeros((5, 1, 3)), np.array([1])))
    with pytest.raises(ValueError, match="past=0"):
        slice_trajectory(water(5), past=0)
    with pytest.raises(ValueError, match="positive"):
        split_in_time(water(5), (5, 0))


# Joints


def test_reads_rotation_vectors(tmp_path):
    rows = np.random.default_rng(0).normal(size=(3, 99))
    path = tmp_path / "walking_1.txt"
    path.write_text("\n".join(",".join(map(repr, map(float, r))) for r in rows) + "\n\n")
    np.testing.assert_array_equal(read_expmaps(path), rows)
    for text, message in (("1,2", "line 1: got 2 numbers"), ("a,2", "line 1"), ("", "no rows")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_expmaps(path)


def test_bones_keep_their_lengths_and_turn_with_the_root():
    rng = np.random.default_rng(0)
    skeleton = Skeleton(np.array([-1, 0, 1, 1, 0]), rng.normal(size=(5, 3)))
    pose = rng.normal(size=(4, 18))
    joints = joint_positions(pose, skeleton)
    assert joints.shape == (4, 5, 3)
    for joint in range(1, 5):
        bone = joints[:, joint] - joints[:, skeleton.parents[joint]]
        np.testing.assert_allclose(np.linalg.norm(bone, axis=-1), np.linalg.norm(skeleton.offsets[joint]))
    # Without rotations offsets add up; at rest the joints stand still for tiny rotations too.
    still = joint_positions(np.zeros(18), skeleton)
    np.testing.assert_allclose(still[3], skeleton.offsets[0] + skeleton.offsets[1] + skeleton.offsets[3])
    assert np.all(np.isfinite(joint_positions(np.full(18, 1e-300), skeleton)))
    # A turn of the root turns everything about it: the root's rotation is the last factor of each frame.
    turned = pose.copy()
    turned[:, 3:6] = 0.0
    straight = joint_positions(turned, skeleton)
    turned[:, 3:6] = [0.0, 0.0, np.pi / 2]
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    expected = (straight - straight[:, :1]) @ quarter + straight[:, :1]
    np.testing.assert_allclose(joint_positions(turned, skeleton), expected, atol=1e-12)


def test_faults_of_skeletons_are_named():
    with pytest.raises(ValueError, match="3 joints"):
        joint_positions(np.zeros(8), Skeleton(np.array([-1, 0]), np.zeros((2, 3))))
    with pytest.raises(ValueError, match="expected -1 first"):
        joint_positions(np.zeros(9), Skeleton(np.array([-1, 1]), np.zeros((2, 3))))
