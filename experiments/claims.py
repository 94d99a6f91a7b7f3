"""What numbers show: statements, each with its bar, the value that was reached, and whether it holds."""

from typing import Any

__all__ = ["Claims"]


class Claims:
    """Collects the claims of one card.

    Each method but `add` ends the statement with its comparison: ", at most", ", at least", ", below" or ", above".

    Args:
      card: name of the system in `experiments.registry`.

    Attributes:
      found: dicts with `card`, `point`, `statement`, `bar`, `value`, `holds`, in the order of the calls; those that do
        not hold also with `why`.

    Example:
      >>> claim = Claims("eqmotion")
      >>> claim.at_most(1, "largest error", 0.1, 0.2)
      >>> claim.found[0]["statement"], claim.found[0]["holds"]
      ('largest error, at most', False)
    """

    def __init__(self, card: str):
        self._card = card
        self.found: list[dict[str, Any]] = []

    def add(self, point: Any, statement: str, bar: float, value: float, *, holds: Any, why: str = "") -> None:
        """Adds a claim.

        Args:
          point: of the card, a number or words.
          statement: what is claimed.
          bar: what the value is compared with.
          value: a number, or an array of shape `[]`.
          holds: whether the value meets the bar, a bool of Python or NumPy.
          why: as far as is known, why it does not; kept only if it does not.
        """
        fields = {"card": self._card, "point": point, "statement": statement, "bar": bar, "value": float(value)}
        self.found.append({**fields, "holds": bool(holds)} | ({} if holds or not why else {"why": why}))

    def at_most(self, point: Any, statement: str, bar: float, value: float, *, why: str = "") -> None:
        """Claims `value <= bar`; arguments as of `add`."""
        self.add(point, f"{statement}, at most", bar, value, holds=value <= bar, why=why)

    def at_least(self, point: Any, statement: str, bar: float, value: float, *, why: str = "") -> None:
        """Claims `value >= bar`; arguments as of `add`."""
        self.add(point, f"{statement}, at least", bar, value, holds=value >= bar, why=why)

    def below(self, point: Any, statement: str, bar: float, value: float, *, why: str = "") -> None:
        """Claims `value < bar`; arguments as of `add`."""
        self.add(point, f"{statement}, below", bar, value, holds=value < bar, why=why)

    def above(self, point: Any, statement: str, bar: float, value: float, *, why: str = "") -> None:
        """Claims `value > bar`; arguments as of `add`."""
        self.add(point, f"{statement}, above", bar, value, holds=value > bar, why=why)
