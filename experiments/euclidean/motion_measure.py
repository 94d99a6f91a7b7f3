"""Errors of predicted motion: of the best head, by future frame, under random rotations; accuracy of pairs."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.euclidean.motion_sets import MotionSet, constant_velocity, random_rotations

__all__ = ["measure", "scene_paths"]

CHUNK = 500
SCENE_AGENTS, SCENE_POINTS = 5, 5


def _predict(apply: Callable, params: Any, past: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """In chunks of one size, so that one program does it; the last is padded with empty scenes."""
    size = min(CHUNK, len(past))
    found, pairs = [], []
    for start in range(0, len(past), size):
        x, m = past[start : start + size], mask[start : start + size]
        missing = size - len(x)
        x, m = np.pad(x, ((0, missing), (0, 0), (0, 0), (0, 0))), np.pad(m, ((0, missing), (0, 0)))
        predicted, categories = apply(params, x, m)
        found.append(np.asarray(predicted)[: size - missing])
        if categories is not None:
            pairs.append(np.asarray(categories)[: size - missing])
    return np.concatenate(found), np.concatenate(pairs) if pairs else None


def _errors(predicted: np.ndarray, future: np.ndarray, mask: np.ndarray, scale: float) -> dict[str, Any]:
    """Errors over agents that are there; of several heads, the one with the least counts, for each error by itself."""
    distance = np.linalg.norm(predicted.astype(np.float64) - future[:, None], axis=-1) / scale
    mean = distance.mean(axis=-1)
    best = np.take_along_axis(distance, mean.argmin(axis=1)[:, None, :, None], axis=1)[:, 0]
    return {
        "ade": float(mean.min(axis=1)[mask].mean()),
        "fde": float(distance[..., -1].min(axis=1)[mask].mean()),
        "by_frame": best[mask].mean(axis=0),
    }


def measure(apply: Callable, params: Any, scenes: MotionSet, config: Any, *, whole: bool = False) -> dict[str, float]:
    """Measures a predictor on the first window of every scene.

    Args:
      apply: compiled `Predictor.apply`.
      params: its parameters.
      scenes: positions `[scenes, agents, frames, n]`, at least `past + future` frames.
      config: of the experiment.
      whole: whether to measure rotated scenes, constant velocity and single frames as well.

    Returns:
      `ade`, `fde` in the data's unit, `edge_accuracy` where the model has two categories and pairs are known; with
      `whole` also `rotated_ade`, `rotation_gap`, `cv_ade`, `cv_fde`, and `frame/t` for each future frame.
    """
    window = scenes.positions[:, :, : config.past + config.future]
    past, future = window[:, :, : config.past], window[:, :, config.past :]
    predicted, categories = _predict(apply, params, past, scenes.mask)
    errors = _errors(predicted, future, scenes.mask, config.scale)
    out = {"ade": errors["ade"], "fde": errors["fde"]}
    if categories is not None and categories.shape[-1] == 2 and scenes.edges is not None:
        pairs = scenes.mask[:, :, None] & scenes.mask[:, None, :] & ~np.eye(window.shape[1], dtype=bool)
        share = float(np.mean((categories.argmax(axis=-1) == 1)[pairs] == scenes.edges[pairs]))
        # Without supervision the categories have no names: the better labelling of the whole set.
        out["edge_accuracy"] = share if config.supervision else max(share, 1 - share)
    if not whole:
        return out
    turns = random_rotations(len(window), window.shape[-1], config.data_seed)
    centre = past.mean(axis=(1, 2), keepdims=True)
    turned = ((window - centre).astype(np.float64) @ turns[:, None]).astype(np.float32) + centre
    predicted, _ = _predict(apply, params, turned[:, :, : config.past], scenes.mask)
    rotated = _errors(predicted, turned[:, :, config.past :], scenes.mask, config.scale)
    straight = constant_velocity(past, config.future)[:, None]
    plain = _errors(straight, future, scenes.mask, config.scale)
    out |= {
        "rotated_ade": rotated["ade"],
        "rotation_gap": abs(rotated["ade"] - out["ade"]),
        "cv_ade": plain["ade"],
        "cv_fde": plain["fde"],
    }
    out |= {f"frame/{t + 1}": float(error) for t, error in enumerate(errors["by_frame"])}
    return out | {f"cv_frame/{t + 1}": float(error) for t, error in enumerate(plain["by_frame"])}


def scene_paths(apply: Callable, params: Any, scenes: MotionSet, config: Any) -> dict[str, float]:
    """The first two coordinates of one test scene, for the figure.

    Returns:
      `path/KIND/AGENT/FRAME/AXIS` with kinds "past", "future" and "predicted" (of the head that is nearest), a few
      frames of the first agents of the first scene with the most agents.
    """
    at = int(scenes.mask.sum(axis=1).argmax())
    window = scenes.positions[at : at + 1, :, : config.past + config.future]
    predicted, _ = apply(params, window[:, :, : config.past], scenes.mask[at : at + 1])
    distance = np.linalg.norm(np.asarray(predicted) - window[:, None, :, config.past :], axis=-1).mean(axis=-1)
    nearest = np.take_along_axis(np.asarray(predicted), distance.argmin(axis=1)[:, None, :, None, None], axis=1)[0, 0]
    paths = {
        "past": window[0, :, : config.past],
        "future": window[0, :, config.past :],
        "predicted": nearest,
    }
    out, every = {}, max(1, config.future // SCENE_POINTS)
    for kind, x in paths.items():
        for agent in np.flatnonzero(scenes.mask[at])[:SCENE_AGENTS]:
            for frame in range(every - 1, x.shape[1], every):
                for axis in range(2):
                    out[f"path/{kind}/{agent}/{frame}/{axis}"] = float(x[agent, frame, axis]) / config.scale
    return out
