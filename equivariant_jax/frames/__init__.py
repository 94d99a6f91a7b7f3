"""Frames: any network made symmetric by averaging it over a few group elements that move with the input.

- `averaging`: `frame_average`, which wraps any function of the user's.
- `pca`: frames of point clouds for O(d), SO(d), E(d), SE(d) by principal components.
- `distance_coordinates`, `scaling`: coordinates from distances alone, on which any network is invariant under
  similarities (TinvNN); multidimensional scaling.
- `orders`: frames of sets and graphs for S_n: the permutations that sort keys, enumerated or sampled.
- `backbones`, `graph_networks`: PointNet, DGCNN, message passing and GIN, the networks to be averaged.
- `particles`: FA-GNN, with new frames between its layers.

    >>> import jax, jax.numpy as jnp
    >>> from equivariant_jax.frames import frame_average, pca_frames
    >>> x = jax.random.normal(jax.random.key(0), (6, 3))
    >>> mirrored = x * jnp.array([[-1.0, 1.0, 1.0]])
    >>> def f(x):
    ...     return frame_average(lambda x: jnp.sin(x).sum(), pca_frames(x), in_types=("position",))(x)
    >>> bool(jnp.allclose(f(x), f(mirrored), atol=1e-5))
    True
"""

from equivariant_jax.frames.averaging import FrameAveraged, FrameSet, frame_average
from equivariant_jax.frames.backbones import (
    DGCNN,
    DGCNNConfig,
    PointNet,
    PointNetConfig,
    dgcnn_apply,
    dgcnn_init,
    pointnet_apply,
    pointnet_init,
)
from equivariant_jax.frames.distance_coordinates import (
    SimilarityFrames,
    distance_coordinates,
    similarity_frames,
    with_invariant_inputs,
)
from equivariant_jax.frames.graph_networks import (
    GINConfig,
    MPNNConfig,
    gin_apply,
    gin_init,
    mpnn_apply,
    mpnn_init,
    node_identifiers,
)
from equivariant_jax.frames.orders import GraphKeys, SortedFrames, laplacian_frames, laplacian_keys, sorted_frames
from equivariant_jax.frames.particles import FAGNN, fa_gnn_apply
from equivariant_jax.frames.pca import Frames, pca_frames
from equivariant_jax.frames.scaling import ScaledCoordinates, classical_mds, odd_signs, pairwise_distances

__all__ = [
    "DGCNN",
    "FAGNN",
    "DGCNNConfig",
    "FrameAveraged",
    "FrameSet",
    "Frames",
    "GINConfig",
    "GraphKeys",
    "MPNNConfig",
    "PointNet",
    "PointNetConfig",
    "ScaledCoordinates",
    "SimilarityFrames",
    "SortedFrames",
    "classical_mds",
    "dgcnn_apply",
    "dgcnn_init",
    "distance_coordinates",
    "fa_gnn_apply",
    "frame_average",
    "gin_apply",
    "gin_init",
    "laplacian_frames",
    "laplacian_keys",
    "mpnn_apply",
    "mpnn_init",
    "node_identifiers",
    "odd_signs",
    "pairwise_distances",
    "pca_frames",
    "pointnet_apply",
    "pointnet_init",
    "similarity_frames",
    "sorted_frames",
    "with_invariant_inputs",
]
