# SPDX-License-Identifier: Apache-2.0
"""A second head on the features of a network, beside that of the classes."""

import functools

from ssl_noisy import contract


class AuxiliaryHeads:
    """Part of a learner that trains a second head on the features of each of its networks."""

    @functools.cached_property  # which Keras does not track, as it would an attribute that is set
    def featured_networks(self):
        """Each of `networks` with one more output: see `contract.with_features`."""
        return tuple(contract.with_features(one, type(self).__name__) for one in self.networks)
