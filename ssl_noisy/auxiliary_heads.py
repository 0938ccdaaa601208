# SPDX-License-Identifier: Apache-2.0
"""A second head on the features of a network, beside that of the classes."""

import functools

from ssl_noisy import contract
from ssl_noisy.errors import UserError


class AuxiliaryHeads:
    """Part of a learner that trains a second head on the features of each of its networks."""

    probes = False  # whether no gradient flows from the classes to the features

    @functools.cached_property  # which Keras does not track, as it would an attribute that is set
    def featured_networks(self):
        """Each of `networks` with one more output: see `contract.with_features`."""
        name, as_probe = type(self).__name__, self.probes
        return tuple(contract.with_features(one, name, as_probe) for one in self.networks)

    def check_square(self, task):
        """Raises a `UserError` unless images keep their shape when they are turned by a quarter."""
        height, width, _ = task.image_shape
        if height != width:
            raise UserError(
                f"{type(self).__name__} turns images by a quarter: they must be square. "
                f"Received: images of {height}x{width}"
            )
