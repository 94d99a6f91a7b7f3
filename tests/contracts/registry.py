"""Every public layer, in one list: a new layer adds an entry to its room's file and inherits all contracts."""

from tests.contracts import (
    core_layers,
    distance_layers,
    euclidean_layers,
    euclidean_models,
    flow_layers,
    frames_layers,
    lie_layers,
    motion_layers,
    vision_layers,
)
from tests.contracts.layer import Layer

__all__ = ["LAYERS"]

LAYERS: list[Layer] = [
    *core_layers.LAYERS,
    *distance_layers.LAYERS,
    *euclidean_layers.LAYERS,
    *euclidean_models.LAYERS,
    *flow_layers.LAYERS,
    *frames_layers.LAYERS,
    *lie_layers.LAYERS,
    *motion_layers.LAYERS,
    *vision_layers.LAYERS,
]
