"""What every test runs under: four fake CPU devices, strict promotion, warnings as errors, quick compilation."""

import gc
import importlib.metadata
import itertools
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=4".strip()
# The CPU back end's emitters of fused loops take half of all compilation; its older ones compute the same. An XLA that
# does not know a flag aborts, hence the version. The contract "jit equals eager" switches them on.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
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


_MAPPINGS, _ALLOWED = Path("/proc/self/maps"), 20_000
_tests = itertools.count()


@pytest.fixture(autouse=True)
def let_go_of_programs():
    """Drops compiled programs before the process has the 65,530 memory mappings that Linux allows, and crashes."""
    yield
    # Each compiled program keeps some mappings; eager operations keep theirs for good.
    if next(_tests) % 16 == 0 and _MAPPINGS.exists() and _MAPPINGS.read_bytes().count(b"\n") > _ALLOWED:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64():
    """Runs the test with 64-bit types enabled."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    """A fixed typed random key."""
    return jax.random.key(0)
