# SPDX-License-Identifier: Apache-2.0
"""The moving average of a learner's weights, and batch norm's running statistics."""

import contextlib

from keras import ops

from ssl_noisy import schedules
from ssl_noisy.arguments import Configured, momentum, switch


class MovingAverage(Configured):
    """Part of `Learner`: an average of the weights that follows each update."""

    ema_momentum: float = momentum(
        0.999, "Momentum of the moving average of the weights. 0 turns it off."
    )
    ema_warmup: bool = switch(
        True,
        "Limit that momentum to (1 + n) / (10 + n) at the n-th update, so that the average forgets "
        "the initial weights in short trainings too. At 0.999 it has no effect after 8990 updates.",
    )
    average_statistics: bool = switch(
        False,
        "Average batch norm's running statistics too. Otherwise the averaged network has the live "
        "ones.",
    )
    always_averages = False  # whether there is an average of the weights with `ema_momentum=0` too

    def build_averages(self):
        """Creates the averages, which start as the weights."""
        averaged = [v for network in self.networks for v in network.trainable_variables]
        averaged += self.running_statistics if self.average_statistics else []
        self.averaged_variables = averaged if self.ema_momentum or self.always_averages else []
        self.averages = [
            self.add_state(f"average_{i}", ops.convert_to_numpy(v.value))
            for i, v in enumerate(self.averaged_variables)
        ]

    def restart_averages(self):
        """Sets the averages to the weights, after those were set."""
        for average, variable in zip(self.averages, self.averaged_variables):
            # A copy: on JAX, Keras hands the buffers of a variable over to XLA.
            average.assign(ops.copy(variable.value))

    def averaged_logits(self, images, training=True):
        """Returns the logits of the network with averaged weights, as a teacher's.

        No gradient flows through them. Batch norm normalizes by the batch if `training`, else by
        running statistics, which stay; dropout draws noise of its own.
        """
        average = {id(v): a for v, a in zip(self.averaged_variables, self.averages)}
        trainable, others = (
            [average.get(id(v), v).value for v in variables]
            for variables in (
                self.network.trainable_variables,
                self.network.non_trainable_variables,
            )
        )
        logits, others = self.network.stateless_call(trainable, others, images, training=training)
        for variable, value in zip(self.network.non_trainable_variables, others):
            if is_random_state(variable):
                variable.assign(value)
        return ops.stop_gradient(logits)

    def after_update(self):
        """Updates what follows the weights: here their moving average."""
        momentum = self.average_momentum()
        for average, variable in zip(self.averages, self.averaged_variables):
            rate = ops.cast(1 - momentum, average.dtype)
            average.assign(average + rate * (variable - average))

    def average_momentum(self):
        """Returns the share of the average that the step just done keeps: a number or scalar."""
        if not self.ema_warmup:
            return self.ema_momentum
        return schedules.warmed_up(self.ema_momentum, self.step.value)

    @property
    def running_statistics(self):
        """The running means and variances of the batch norm of all networks."""
        variables = [v for network in self.networks for v in network.non_trainable_variables]
        return [v for v in variables if "moving_" in v.name]

    @contextlib.contextmanager
    def kept_statistics(self):
        """Within this context batch norm normalizes by the batch, and keeps its running statistics.

        For a forward pass whose images are unlike those that the network will see.
        """
        variables = [v for network in self.networks for v in network.non_trainable_variables]
        counts = [v for v in variables if v.name == "num_updates"]
        before = [(v, ops.copy(v.value)) for v in (*self.running_statistics, *counts)]
        try:
            yield
        finally:
            for variable, value in before:
                variable.assign(value)

    @contextlib.contextmanager
    def averaged_weights(self):
        """Within this context the networks hold the moving averages of their weights.

        Batch norm keeps the live statistics, as the FixMatch code does, unless
        `average_statistics`. The weights come back at the end, whatever happens
        in between. Train outside of it.
        """
        # With the moving average off, `averages` is empty and nothing is swapped.
        swapped = list(zip(self.averaged_variables, self.averages))
        live = [ops.copy(variable.value) for variable, _ in swapped]
        for variable, average in swapped:
            # A copy: on JAX, Keras hands the buffers of a variable over to XLA.
            variable.assign(ops.copy(average.value))
        try:
            yield self
        finally:
            for (variable, _), value in zip(swapped, live):
                variable.assign(value)


def is_random_state(variable):
    """Whether a variable is the state of a `keras.random.SeedGenerator`."""
    return "seed_generator_state" in variable.name
