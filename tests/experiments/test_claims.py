"""Claims hold exactly where their comparison does, and say it."""

import numpy as np
import pytest

from experiments import report, results
from experiments.claims import Claims


@pytest.mark.parametrize(
    ("method", "words", "holds"),
    [
        ("at_most", "at most", [True, True, False, False]),
        ("at_least", "at least", [False, True, True, False]),
        ("below", "below", [True, False, False, False]),
        ("above", "above", [False, False, True, False]),
    ],
)
def test_comparisons_at_the_bar_and_beside_it(method, words, holds):
    claim = Claims("card")
    for value in (0.5, 1.0, 1.5, float("nan")):
        getattr(claim, method)(2, "error", 1.0, np.float64(value))
    assert [c["holds"] for c in claim.found] == holds
    assert {c["statement"] for c in claim.found} == {f"error, {words}"}
    assert results.check_claims(claim.found) == claim.found


def test_claims_are_plain_and_in_order():
    claim = Claims("card")
    claim.add("speed", "as fast", 1, np.float32(2), holds=np.True_)
    claim.at_most(3, "error", 7, 8)
    assert list(claim.found[0].items()) == [
        ("card", "card"), ("point", "speed"), ("statement", "as fast"), ("bar", 1), ("value", 2.0), ("holds", True)
    ]  # fmt: skip
    assert [(type(c["bar"]), type(c["value"]), type(c["holds"])) for c in claim.found] == [(int, float, bool)] * 2
    assert Claims("card").found == []


def test_reasons_are_kept_where_claims_fall_short_alone():
    claim = Claims("card")
    claim.at_most(1, "error", 1.0, 2.0, why="too few steps")
    claim.at_most(1, "error", 1.0, 0.5, why="too few steps")
    claim.at_least(1, "gain", 1.0, 0.5)
    assert [c.get("why") for c in claim.found] == ["too few steps", None, None]


def test_what_falls_short_is_listed_with_its_reason():
    claim = Claims("tinvnn")
    claim.at_most(1, "error |e|", 1.0, 2.0, why="rounding")
    claim.at_most(1, "other error", 1.0, 0.5)
    table = report.shortfalls_table({"result": {"claims": claim.found}})
    assert table.splitlines()[2:] == ["| TinvNN | error \\|e\\|, at most | 1 | 2 | rounding |"]


def test_committed_claims_that_fall_short_have_a_reason():
    every = [c for result in results.read_all().values() for c in result.get("claims", [])]
    assert every, "results are read"
    assert [c["statement"] for c in every if not c["holds"] and not c.get("why")] == []
