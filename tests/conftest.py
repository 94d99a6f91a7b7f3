"""What every test runs under: four fake CPU devices, strict promotion, warnings as errors, quick compilation."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=4".strip()
# Most of a test's time is XLA's: programs that run once are compiled without its optimisations, here and in processes
# that tests start. The contract "jit equals eager" compiles with them; with JAX_DISABLE_MOST_OPTIMIZATIONS=0 all do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest

from equivariant_jax.core import backend

# Before the first computation: some jaxlib versions sum wrongly on CPU without it, see equivariant_jax/core/backend.py.
backend.apply_workarounds()
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Runs the test with 64-bit types enabled."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    """A fixed typed random key."""
    return jax.random.key(0)
