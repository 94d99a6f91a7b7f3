"""Data: reading, checking, batching; deterministic, resumable, and honest about what is missing or malformed.

Symmetry enters by what is kept: positions, lattice vectors, forces and stresses are stored as vectors and tensors with
their units, and neighbour lists and graphs commute with rotations, translations and relabelling of atoms (tested).

| module | what |
|---|---|
| `sources` | the protocol of a data set (`len`, `[i]`), arrays as one, where sets lie, what to do when one is missing |
| `pipeline`, `packing` | shuffled, sharded by process, read ahead, exactly resumable batches of examples or graphs |
| `structures`, `neighbours`, `conversion` | atoms with labels; periodic neighbour lists and graphs; to and from ASE |
| `extxyz`, `arrays`, `images` | strict readers of extended XYZ, npz, IDX: a sound result or a `ValueError` by field |
| `catalysts`, `catalyst_pickles` | OC20's LMDB files without torch and without trusting pickles; a plain npz format |
| `flowing`, `generated` | sequences of moving digits, made on the device; endless batches from a key |
| `affine` | digits under affine maps and homographies, made on the device; affNIST's and homNIST's files |
| `shapes`, `meshes` | procedural solids as points with normals; OFF, OBJ, ModelNet40 |
| `graph6` | graphs as lines of text |
| `routing` | tours: TSPLIB files, exact and 2-opt |
| `kth` | the KTH set of human actions, from its videos, and clips of it in motion |
| `pedestrians` | walking people of ETH and UCY, in windows, one scene left out |
| `trajectories` | trajectories of molecules and of human joints, cut into past and future |
| `simulators` | seeded simulations in NumPy with a written specification |
| `molecules` | the embedded set of 2-aminoethanol, and published sets under `EQUIVARIANT_JAX_DATA` |

Nothing downloads. Readers need nothing but NumPy; `grain`, `tensorflow_datasets` and `ase` are imported when used.

Example:
  >>> from equivariant_jax import core, data
  >>> frames = data.aminoethanol("validation_300K")
  >>> graphs = [data.to_graph(frame, cutoff=4.0, species=(1, 6, 7, 8)) for frame in frames]
  >>> sizes = data.graph_sizes(graphs)
  >>> budget = core.graphs.plan_budget(*sizes, batch_size=8)
  >>> batches = data.graph_pipeline(graphs, budget, seed=0, sizes=sizes)
  >>> next(batches).nodes["positions"].shape == (budget.n_node, 3)
  True
"""

from equivariant_jax.data import (
    affine,
    arrays,
    catalyst_pickles,
    catalysts,
    conversion,
    extxyz,
    flowing,
    generated,
    graph6,
    images,
    kth,
    meshes,
    molecules,
    neighbours,
    packing,
    pedestrians,
    pipeline,
    routing,
    shapes,
    simulators,
    sources,
    structures,
    trajectories,
)
from equivariant_jax.data.affine import AffineRanges, affine_mnist, affnist, homnist, homography_mnist
from equivariant_jax.data.arrays import read_npz
from equivariant_jax.data.catalysts import CatalystLMDB, catalyst_from_pickle, read_catalysts, write_catalysts
from equivariant_jax.data.conversion import from_ase, to_ase
from equivariant_jax.data.extxyz import read_extxyz, write_extxyz
from equivariant_jax.data.flowing import FlowingSequence, flowing_mnist, half_scale, rotating_mnist
from equivariant_jax.data.generated import GeneratedBatches
from equivariant_jax.data.graph6 import graph6_adjacency, graph6_line, read_graph6
from equivariant_jax.data.images import mnist, read_idx, small_digits
from equivariant_jax.data.kth import KTH_ACTIONS, kth_actions, moving_clips
from equivariant_jax.data.meshes import modelnet40, read_obj, read_off, sample_mesh
from equivariant_jax.data.molecules import aminoethanol, aminoethanol_metadata, published_molecules
from equivariant_jax.data.neighbours import NeighbourList, neighbour_list, to_graph
from equivariant_jax.data.packing import GraphPipeline, graph_pipeline, graph_sizes
from equivariant_jax.data.pedestrians import PEDESTRIAN_SCENES, PedestrianWindows
from equivariant_jax.data.pipeline import Pipeline, make_pipeline
from equivariant_jax.data.routing import optimal_tour, read_tsplib, tour_length, two_opt
from equivariant_jax.data.shapes import SHAPE_CLASSES, procedural_shapes
from equivariant_jax.data.sources import (
    ArraySource,
    MissingDataError,
    RandomAccessSource,
    data_directory,
    find_data_file,
    tfds_source,
)
from equivariant_jax.data.structures import AtomicStructure, isolated_atom_energies
from equivariant_jax.data.trajectories import MolecularTrajectory, slice_trajectory, split_in_time

__all__ = [
    "KTH_ACTIONS",
    "PEDESTRIAN_SCENES",
    "SHAPE_CLASSES",
    "AffineRanges",
    "ArraySource",
    "AtomicStructure",
    "CatalystLMDB",
    "FlowingSequence",
    "GeneratedBatches",
    "GraphPipeline",
    "MissingDataError",
    "MolecularTrajectory",
    "NeighbourList",
    "PedestrianWindows",
    "Pipeline",
    "RandomAccessSource",
    "affine",
    "affine_mnist",
    "affnist",
    "aminoethanol",
    "aminoethanol_metadata",
    "arrays",
    "catalyst_from_pickle",
    "catalyst_pickles",
    "catalysts",
    "conversion",
    "data_directory",
    "extxyz",
    "find_data_file",
    "flowing",
    "flowing_mnist",
    "from_ase",
    "generated",
    "graph6",
    "graph6_adjacency",
    "graph6_line",
    "graph_pipeline",
    "graph_sizes",
    "half_scale",
    "homnist",
    "homography_mnist",
    "images",
    "isolated_atom_energies",
    "kth",
    "kth_actions",
    "make_pipeline",
    "meshes",
    "mnist",
    "modelnet40",
    "molecules",
    "moving_clips",
    "neighbour_list",
    "neighbours",
    "optimal_tour",
    "packing",
    "pedestrians",
    "pipeline",
    "procedural_shapes",
    "published_molecules",
    "read_catalysts",
    "read_extxyz",
    "read_graph6",
    "read_idx",
    "read_npz",
    "read_obj",
    "read_off",
    "read_tsplib",
    "rotating_mnist",
    "routing",
    "sample_mesh",
    "shapes",
    "simulators",
    "slice_trajectory",
    "small_digits",
    "sources",
    "split_in_time",
    "structures",
    "tfds_source",
    "to_ase",
    "to_graph",
    "tour_length",
    "trajectories",
    "two_opt",
    "write_catalysts",
    "write_extxyz",
]
