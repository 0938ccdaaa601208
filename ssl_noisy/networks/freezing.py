# SPDX-License-Identifier: Apache-2.0
"""Freezing: layers that keep their weights while the others train."""

import re

from ssl_noisy import contract
from ssl_noisy.errors import UserError

NONE, BACKBONE = "none", "backbone"


def freeze(network, part):
    """Freezes the first layers of a network, which then run in inference mode where it matters.

    Keras runs frozen batch normalization in inference mode: it normalizes by its running
    statistics, which stay.

    Args:
        network: A `keras.Model`. It changes.
        part: `none`; `backbone`, all but the last layer; or the beginning of layers' names: all
            layers up to the last one whose name begins so. A number ends there, so `block_1` is
            not `block_10`.

    Raises:
        UserError: If no layer has such a name.
    """
    if part == NONE:
        return
    if part != BACKBONE and not hasattr(network, "output_shape"):
        raise UserError(
            f"--freeze={part} needs a Sequential or functional network, whose layers have an "
            f"order. Use --freeze={BACKBONE}. Received: {network.name!r}, a subclassed model"
        )
    head = contract.head(network)
    body = [layer for layer in contract.leaves(network) if layer is not head]
    if part != BACKBONE:
        body = _up_to(network, body, part)
    for layer in body:
        layer.trainable = False


def _up_to(network, body, part):
    begins = re.compile(re.escape(part) + "(?![0-9])")
    found = [place for place, layer in enumerate(body) if begins.match(layer.name)]
    if not found:
        raise UserError(
            f"--freeze must be {NONE}, {BACKBONE} or the name of a stage. Received: {part!r}. "
            f"Stages of {network.name}: {', '.join(stages(body))}."
        )
    return body[: found[-1] + 1]


def stages(body):
    """Returns the names of stages: of layers with weights, up to the first number in each name."""
    found = {}
    for layer in body:
        if layer.weights:
            # The 2 of `conv2d` and `conv2d_7` is no number of a stage.
            unnamed = re.fullmatch(r".*conv\dd(_\d+)?", layer.name)
            stage = None if unnamed else re.match(r"\D*\d+", layer.name)
            found[stage[0] if stage else layer.name] = None
    return list(found)
