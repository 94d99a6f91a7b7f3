"""Every public layer keeps every contract; an exemption must give its reason."""

import pytest

from tests.contracts.contracts import CONTRACTS
from tests.contracts.registry import LAYERS


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize(
    "layer", [pytest.param(layer, id=layer.name, marks=[pytest.mark.slow] * layer.slow) for layer in LAYERS]
)
def test_contract(layer, contract):
    if contract in layer.exempt:
        pytest.skip(layer.exempt[contract])
    CONTRACTS[contract](layer)


def test_names_are_unique_and_exemptions_exist():
    names = [layer.name for layer in LAYERS]
    assert len(set(names)) == len(names)
    for layer in LAYERS:
        assert set(layer.exempt) <= set(CONTRACTS)
        assert all(len(reason) > 10 for reason in layer.exempt.values())
