# SPDX-License-Identifier: Apache-2.0
"""The optimizers of a run: Keras's, each with its own meaning of momentum and weight decay."""

import keras

from ssl_noisy.errors import UserError

# The defaults of a run where the method's paper has no value for that optimizer.
DEFAULTS = {
    "sgd": {"learning_rate": 0.03, "momentum": 0.9, "nesterov": True},
    "adam": {"learning_rate": 0.001, "momentum": 0.9},
    "adamw": {"learning_rate": 0.001, "momentum": 0.9},
    "muon": {"learning_rate": 0.001, "momentum": 0.95, "nesterov": True},
}
OPTIMIZERS = tuple(DEFAULTS)
# The last layers, of the network and of ReMixMatch's rotations. Muon leaves them to AdamW.
LAST_LAYERS = ("logits", "rotation")
# These shrink the weights themselves, by learning rate times weight decay in each step.
DECOUPLED = ("adamw", "muon")


def make(name, learning_rate, variables, *, momentum, nesterov=None, weight_decay=0.0, decayed=()):
    """Makes a Keras optimizer by name.

    Keras's Muon orthogonalizes the updates of dense kernels. The last layers, convolutions,
    biases and batch normalization are updated by AdamW, as Keras recommends.

    Args:
        name: One of `OPTIMIZERS`.
        learning_rate: Float or `keras.optimizers.schedules.LearningRateSchedule`.
        variables: List of the variables to train.
        momentum: Float in [0, 1), the momentum of SGD and Muon, and `beta_1` of Adam and AdamW.
        nesterov: Whether SGD and Muon use Nesterov's momentum.
        weight_decay: Float >= 0, decoupled weight decay of the optimizers in `DECOUPLED`. It must
            be 0 for all others, where a learner adds weight decay to the loss.
        decayed: List of the `variables` to which `weight_decay` applies.

    Returns:
        A `keras.optimizers.Optimizer`, not built.

    Raises:
        ValueError: If there is no kernel for Muon, so it would be AdamW under another name.
    """
    if weight_decay and name not in DECOUPLED:
        raise UserError(
            f"{name} has no decoupled weight decay, only {', '.join(DECOUPLED)} have. "
            f"Received: weight_decay={weight_decay}"
        )
    if name == "sgd":
        return keras.optimizers.SGD(learning_rate, momentum=momentum, nesterov=bool(nesterov))
    if name == "adam":
        return keras.optimizers.Adam(learning_rate, beta_1=momentum)
    if name == "adamw":
        made = keras.optimizers.AdamW(learning_rate, weight_decay, beta_1=momentum)
    else:
        hidden = [v for v in variables if not any(name in v.path for name in LAST_LAYERS)]
        if not any(len(v.shape) == 2 for v in hidden):
            raise UserError(
                "--optimizer=muon updates dense kernels below the last layer, but this network has "
                "none: AdamW would update all of it. Use --optimizer=adamw or --network=wide_lenet."
            )
        made = keras.optimizers.Muon(
            learning_rate,
            momentum=momentum,
            nesterov=bool(nesterov),
            weight_decay=weight_decay,
            adam_weight_decay=weight_decay,
            exclude_layers=list(LAST_LAYERS),
        )
    ids = {id(variable) for variable in decayed}
    made.exclude_from_weight_decay(var_list=[v for v in variables if id(v) not in ids])
    return made
