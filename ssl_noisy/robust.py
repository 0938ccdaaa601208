# SPDX-License-Identifier: Apache-2.0
"""What the methods for wrong labels share: their defaults, memory and a second network."""

import functools

from keras import ops

from ssl_noisy import contract
from ssl_noisy.arguments import switch
from ssl_noisy.learner import Learner
from ssl_noisy.moving_average import is_random_state


class RobustLearner(Learner):
    """Base of the methods that train on given labels of which some are wrong.

    As in their authors' code the weight decay is of all variables, and the network that is
    evaluated is the last one, no average.
    """

    batch_size: int = Learner.batch_size.with_default(128)
    decayed: str = Learner.decayed.with_default("all")
    ema_momentum: float = Learner.ema_momentum.with_default(0.0)

    training_defaults = Learner.training_defaults | {"steps_per_epoch": 391, "nesterov": False}

    def steps_per_pass(self, task):
        """Returns how many steps take every labeled example of `task` once, at least 1."""
        return max(1, -(-len(task.labeled) // self.batch_size))

    def remember(self, state, indices, rows):
        """Writes `rows`, without gradient, to the examples at `indices` of a state.

        Of an example that comes twice in a batch the last row is written at both places: they
        may be written in any order, as on a GPU.

        Args:
            state: A variable of `build_example_state`, of shape `(num_examples, ...)`.
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
    random numbers, which a run seeds. Both are trained, decayed, averaged and saved. The one
    that is recorded is the first, and so is the one that is evaluated and handed out, unless
    `sum_networks`.
    """

    sum_networks: bool = switch(
        False, "Evaluate and save the sum of both networks' logits, not the first network alone."
    )

    def build_networks(self):
        self.second_network = contract.new_copy(self.network)
        random_states = [
            v for v in self.second_network.non_trainable_variables if is_random_state(v)
        ]
        self.states.update({f"second_random_state_{i}": v for i, v in enumerate(random_states)})

    @property
    def networks(self):
        """Both networks, the first and the second."""
        return self.network, self.second_network

    @functools.cached_property  # which Keras does not track, as it would an attribute that is set
    def classifier(self):
        return contract.summed(self.networks) if self.sum_networks else self.network
