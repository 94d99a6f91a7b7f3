r"""What EqMotion needs of pairs of agents, for all pairs of a padded set and for the edges of graphs.

Both do the same to an ordered pair (i, j), the agent i that is moved and the agent j that it sees: add what each agent
brings, measure distances, sum over j, pull i by weighted differences to the j's, and take means over the agents of a
scene. A network that is written with these runs on either.

For all pairs, `sum_j w_ij (G_i - G_j) = G_i sum_j w_ij - sum_j w_ij G_j`, so that no array has agents x agents x
channels x n entries.
"""

from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jax import lax

from equivariant_jax.core.linalg import safe_norm
from equivariant_jax.core.segments import segment_sum
from equivariant_jax.core.typing import Array
from equivariant_jax.euclidean.vectors import masked_mean_vector, pair_distances

__all__ = ["AllPairs", "EdgePairs", "Pairs"]


class Pairs(Protocol):
    """Ordered pairs (i, j) of agents."""

    @property
    def empty(self) -> bool:
        """Whether shapes alone say that there is no pair, so that pairs need not be computed."""
        ...

    def real(self, agents: Array) -> Array:
        """Sets to zero what stands at agents that are not there: `[agents axes, ...]` to the same shape."""
        ...

    def of_agents(self, first: Array, second: Array) -> Array:
        """`first_i + second_j`: two arrays `[agents axes, features]` to `[pair axes, features]`."""
        ...

    def distances(self, vectors: Array) -> Array:
        """`|v_i - v_j|` by channel: `[agents axes, channels, n]` to `[pair axes, channels]`."""
        ...

    def total(self, values: Array) -> Array:
        """Sums over the agents j that i sees: `[pair axes, features]` to `[agents axes, features]`."""
        ...

    def pull(self, weights: Array, vectors: Array) -> Array:
        """`sum_j w_ij (v_i - v_j)`: `[pair axes, channels]`, `[agents axes, channels, n]` to the shape of vectors."""
        ...

    def centre(self, vectors: Array) -> Array:
        """Mean over the agents of a scene and channels, `[agents axes or ones, 1, n]`; zero without agents."""
        ...


class AllPairs(NamedTuple):
    """Every two agents of padded sets; pair axes are `[..., agents, agents]`.

    Attributes:
      mask: which agents are there, bool, shape `[..., agents]`.
      others: which ordered pairs are of two different agents that are there, bool, shape `[..., agents, agents, 1]`.
    """

    mask: Array
    others: Array

    @classmethod
    def of(cls, mask: Array) -> "AllPairs":
        """Makes the pairs of the agents that are there, bool `[..., agents]`."""
        distinct = ~jnp.eye(mask.shape[-1], dtype=bool).reshape((1,) * (mask.ndim - 1) + (mask.shape[-1],) * 2)
        return cls(mask, (distinct & mask[..., :, None] & mask[..., None, :])[..., None])

    @property
    def empty(self) -> bool:
        """See `Pairs`; of agents that are alone."""
        return self.mask.shape[-1] < 2

    def real(self, agents: Array) -> Array:
        """See `Pairs`; `[..., agents, ...]` with as many leading axes as the mask has."""
        mask = self.mask.reshape(self.mask.shape + (1,) * (agents.ndim - self.mask.ndim))
        return jnp.where(mask, agents, jnp.zeros_like(agents))

    def of_agents(self, first: Array, second: Array) -> Array:
        """See `Pairs`; `[..., agents, features]` to `[..., agents, agents, features]`."""
        return first[..., :, None, :] + second[..., None, :, :]

    def distances(self, vectors: Array) -> Array:
        """See `Pairs`; `[..., agents, channels, n]` to `[..., agents, agents, channels]`."""
        return pair_distances(vectors)

    def total(self, values: Array) -> Array:
        """See `Pairs`; `[..., agents, agents, features]` to `[..., agents, features]`."""
        return jnp.sum(jnp.where(self.others, values, jnp.zeros_like(values)), axis=-2)

    def pull(self, weights: Array, vectors: Array) -> Array:
        """See `Pairs`; `[..., agents, agents, channels]` and `[..., agents, channels, n]`."""
        weights = jnp.where(self.others, weights, jnp.zeros_like(weights))
        # Sums that the compiler fuses; as products of matrices they are many tiny ones, ten times slower on a CPU.
        there = jnp.sum(weights[..., None] * vectors[..., None, :, :, :], axis=-3)
        return jnp.sum(weights, axis=-2)[..., None] * vectors - there

    def centre(self, vectors: Array) -> Array:
        """See `Pairs`; `[..., agents, channels, n]` to `[..., 1, 1, n]`."""
        return masked_mean_vector(vectors, self.mask)


class EdgePairs(NamedTuple):
    """The edges of graphs, one after another; agent axes are `[nodes]`, pair axes `[edges]`.

    Attributes:
      mask: which nodes are there, bool, shape `[nodes]`.
      senders: j of each edge, int, shape `[edges]`.
      receivers: i of each edge, int, shape `[edges]`.
      edge_mask: which edges are there, bool, shape `[edges]`.
      graph_of: graph of each node, int, shape `[nodes]`.
      num_graphs: static; number of graphs.
      are_sorted: static; whether receivers do not decrease.
    """

    mask: Array
    senders: Array
    receivers: Array
    edge_mask: Array
    graph_of: Array
    num_graphs: int
    are_sorted: bool = False

    @property
    def empty(self) -> bool:
        """See `Pairs`; of graphs without edges."""
        return len(self.senders) == 0

    def real(self, agents: Array) -> Array:
        """See `Pairs`; `[nodes, ...]`."""
        mask = self.mask.reshape(self.mask.shape + (1,) * (agents.ndim - 1))
        return jnp.where(mask, agents, jnp.zeros_like(agents))

    def of_agents(self, first: Array, second: Array) -> Array:
        """See `Pairs`; `[nodes, features]` to `[edges, features]`."""
        return first[self.receivers] + second[self.senders]

    def distances(self, vectors: Array) -> Array:
        """See `Pairs`; `[nodes, channels, n]` to `[edges, channels]`."""
        return safe_norm(vectors[self.receivers] - vectors[self.senders])

    def total(self, values: Array) -> Array:
        """See `Pairs`; `[edges, ...]` to `[nodes, ...]`."""
        return segment_sum(
            values, self.receivers, self.mask.shape[0], mask=self.edge_mask, indices_are_sorted=self.are_sorted
        )

    def pull(self, weights: Array, vectors: Array) -> Array:
        """See `Pairs`; `[edges, channels]` and `[nodes, channels, n]`."""
        return self.total(weights[..., None] * (vectors[self.receivers] - vectors[self.senders]))

    def centre(self, vectors: Array) -> Array:
        """See `Pairs`; `[nodes, channels, n]` to `[nodes, 1, n]`, of the graph that each node is in."""
        sums = segment_sum(jnp.sum(vectors, axis=-2), self.graph_of, self.num_graphs, mask=self.mask)
        number = segment_sum(self.mask.astype(vectors.dtype), self.graph_of, self.num_graphs)
        number = jnp.maximum(number, jnp.ones_like(number)) * lax.convert_element_type(vectors.shape[-2], vectors.dtype)
        return (sums / number[:, None])[self.graph_of][:, None, :]
