# SPDX-License-Identifier: Apache-2.0
"""What the methods for wrong labels share: their settings, memory and a second network."""

from keras import ops

from ssl_noisy import contract
from ssl_noisy.learner import Learner, is_random_state


class RobustLearner(Learner):
    """Base of the methods that train on given labels of which some are wrong.

    As in their authors' code the weight decay is of all variables, and the network that is
    evaluated is the last one, no average.
    """

    def __init__(
        self,
        network,
        task=None,
        *,
        batch_size: int = 128,
        decayed: str = "all",
        ema_momentum: float = 0.0,
        **kwargs,
    ):
        kwargs.update(batch_size=batch_size, decayed=decayed, ema_momentum=ema_momentum)
        super().__init__(network, task, **kwargs)

    def steps_per_pass(self, task):
        """Returns how many steps take every labeled example of `task` once, at least 1."""
        return max(1, -(-len(task.labeled) // self.batch_size))

    def remember(self, state, indices, rows):
        """Writes `rows`, without gradient, to the examples at `indices` of a state.

        Of an example that comes twice in a batch the last row is written at both places: they
        may be written in any order, as on a GPU.

        Args:
            state: A variable of `example_states`, of shape `(num_examples, ...)`.
            indices: int32 `(batch_size,)`.
            rows: Tensor of shape `(batch_size, ...)`.
        """
        place = ops.arange(indices.shape[0])
        last = ops.max(ops.where(indices[None] == indices[:, None], place[None], 0), axis=1)
        rows = ops.take(ops.stop_gradient(rows), last, axis=0)
        state.assign(ops.scatter_update(state.value, indices[:, None], rows))


class TwoNetworkLearner(RobustLearner):
    """Base of the methods that train two networks, each of which chooses for the other.

    The second is like `network`, with initial weights of its own: Keras draws them from Python's
    random numbers, which a run seeds. Both are trained, decayed and saved. The one that is
    recorded, averaged, evaluated and handed out is the first.
    """

    def __init__(self, network, task=None, **kwargs):
        super().__init__(network, task, **kwargs)
        self.second_network = contract.new_copy(network)
        random_states = [
            v for v in self.second_network.non_trainable_variables if is_random_state(v)
        ]
        self.states.update({f"second_random_state_{i}": v for i, v in enumerate(random_states)})

    @property
    def networks(self):
        """Both networks, the first and the second."""
        return self.network, self.second_network

    def decayed_variables(self):
        variables = self.second_network.trainable_variables
        second = [v for v in variables if v.name == "kernel" or self.decayed == "all"]
        return [*super().decayed_variables(), *second]


def mean_of_kept(values, mask):
    """Averages the values that are kept, where `losses.masked_mean` divides by the size of all.

    Args:
        values: Float tensor of shape `(n,)`.
        mask: Float tensor of the same shape, 1.0 (kept) or 0.0.

    Returns:
        A float scalar; 0, with no gradient, if nothing is kept.
    """
    return ops.sum(values * mask) / ops.maximum(ops.sum(mask), 1.0)
