"""The backend sentinel: sound with the workarounds, and able to see the fault that they are for."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from equivariant_jax.core import backend


@pytest.mark.parametrize("pattern", backend.PATTERNS, ids=lambda p: p.name)
def test_backend_is_sound(pattern):
    """If this fails, the installed jaxlib computes wrong numbers here: the message says what to do."""
    faults = backend.check_backend((pattern,))
    assert not faults, faults[0].message


def test_planted_faults_are_found():
    wrong = backend.PATTERNS[0]._replace(name="planted", run=lambda x, w: jnp.sum(x @ w.T, 1).at[-1].add(0.1))
    nan = wrong._replace(run=lambda x, w: jnp.full(len(x), jnp.nan))
    found = backend.check_backend((wrong, nan, backend.PATTERNS[0]))
    assert [f.pattern for f in found] == ["planted", "planted"]
    assert found[0].error > 1e-3
    assert np.isnan(found[1].error)
    assert "apply_workarounds" in found[0].message


def test_sentinel_sees_the_real_fault_of_the_installed_version():
    """Without the workaround jaxlib 0.10.0 and 0.10.1 have a wrong sum on CPU; from 0.12 on there is none."""
    code = (
        "from equivariant_jax.core import backend\n"
        "names = [f.pattern for f in backend.check_backend(backend.PATTERNS[:9])]\n"
        "print(len(names), any('3 columns, 33000 rows' in n for n in names), backend._jaxlib_version())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    version = backend._jaxlib_version()
    if version >= (0, 12):
        assert out.startswith("0 False")
    elif version == (0, 10):
        assert out.startswith("1 True"), out


def test_workaround_is_added_once_and_respects_the_user(monkeypatch):
    monkeypatch.setattr(backend, "_jaxlib_version", lambda: (0, 10))
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    added = backend.apply_workarounds()
    assert added == "--xla_cpu_experimental_ynn_fusion_type=-reduce"
    assert os.environ["XLA_FLAGS"] == f"--xla_force_host_platform_device_count=4 {added}"
    assert backend.apply_workarounds() is None
    monkeypatch.setattr(backend, "_jaxlib_version", lambda: (0, 12))
    monkeypatch.setenv("XLA_FLAGS", "")
    assert backend.apply_workarounds() is None
    assert os.environ["XLA_FLAGS"] == ""
