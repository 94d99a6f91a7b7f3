"""Groups of matrices that are neither compact nor commutative: coordinates, Haar measures, samples, convolutions.

Stretches, shears and rotations of the plane and of space (GL+(n), SL(n) and their subgroups), by factors whose
logarithms and measures are elementary.

    from equivariant_jax.lie import SL2, polar_log, sample_polar

    x, rotation = polar_log(matrix)  # A = exp(X) R, for every matrix of positive determinant
    samples = sample_polar(key, 64, SL2)
    integral = jnp.sum(f(samples.matrix) * samples.weights)  # by the Haar measure
"""

from equivariant_jax.lie.classifier import (
    AffineClassifier,
    AffineClassifierConfig,
    affine_classifier_apply,
    affine_classifier_init,
    averaged_probabilities,
    published_classifier,
)
from equivariant_jax.lie.convolution import (
    affine_group_conv,
    group_kernel,
    group_measure,
    group_pool,
    lift_conv,
    lift_kernel,
)
from equivariant_jax.lie.decomposition import (
    GL2,
    GL3,
    R_SO2,
    SL2,
    SL3,
    SO2,
    SO3,
    IwasawaFactors,
    LinearGroup,
    R,
    coordinates,
    haar_log_density_iwasawa,
    haar_log_density_polar,
    iwasawa,
    iwasawa_product,
    polar_exp,
    polar_log,
    stretch_coordinates,
    stretch_matrix,
)
from equivariant_jax.lie.elementary import rotation_exp, rotation_log, symmetric_exp, symmetric_log
from equivariant_jax.lie.homography import (
    homography_action,
    homography_conv,
    homography_conv_init,
    homography_lift,
)
from equivariant_jax.lie.kernels import AffineKernelConfig, affine_kernel, affine_kernel_init, kernel_grid
from equivariant_jax.lie.normalisation import moment_norm, moment_norm_init
from equivariant_jax.lie.sampling import GroupSamples, published_samples, sample_polar

__all__ = [
    "GL2",
    "GL3",
    "R_SO2",
    "SL2",
    "SL3",
    "SO2",
    "SO3",
    "AffineClassifier",
    "AffineClassifierConfig",
    "AffineKernelConfig",
    "GroupSamples",
    "IwasawaFactors",
    "LinearGroup",
    "R",
    "affine_classifier_apply",
    "affine_classifier_init",
    "affine_group_conv",
    "affine_kernel",
    "affine_kernel_init",
    "averaged_probabilities",
    "coordinates",
    "group_kernel",
    "group_measure",
    "group_pool",
    "haar_log_density_iwasawa",
    "haar_log_density_polar",
    "homography_action",
    "homography_conv",
    "homography_conv_init",
    "homography_lift",
    "iwasawa",
    "iwasawa_product",
    "kernel_grid",
    "lift_conv",
    "lift_kernel",
    "moment_norm",
    "moment_norm_init",
    "polar_exp",
    "polar_log",
    "published_classifier",
    "published_samples",
    "rotation_exp",
    "rotation_log",
    "sample_polar",
    "stretch_coordinates",
    "stretch_matrix",
    "symmetric_exp",
    "symmetric_log",
]
