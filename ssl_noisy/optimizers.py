# SPDX-License-Identifier: Apache-2.0
"""The optimizers of a run: Keras's, each with its own meaning of momentum and weight decay."""

import keras
from keras import ops

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


class BackboneRate:
    """Part of an optimizer: trains some variables at a fraction of the learning rate.

    Gradients cannot be scaled instead: the updates of Adam and Muon do not depend on their size.
    `update_step`, which Keras documents for optimizers of your own, gets the learning rate of each
    variable. Decoupled weight decay, which Keras applies before that by the whole rate, is applied
    here to these variables, by their own rate, as PyTorch does for groups of parameters.
    """

    def __init__(self, *args, backbone=None, **kwargs):
        super().__init__(*args, **kwargs)
        # Outside of Keras's tracking, which would copy the lists.
        vars(self)["backbone"] = backbone

    def build(self, variables):
        by_path = {
            name: tuple(v for v in variables if v.path in self.backbone[name])
            for name in ("paths", "decayed")
        }
        # As above: tracked, the variables of the network would be the optimizer's.
        vars(self)["variables_of_backbone"] = by_path
        super().build(variables)

    def is_one_of(self, variable, name):
        # On TensorFlow, `update_step` gets the `tf.Variable` of a Keras variable.
        found = self.variables_of_backbone[name]
        return any(variable is own or variable is own.value for own in found)

    def update_step(self, gradient, variable, learning_rate):
        if self.is_one_of(variable, "paths"):
            learning_rate = learning_rate * self.backbone["multiplier"]
        if self.is_one_of(variable, "decayed"):
            share = ops.cast(learning_rate * self.weight_decay, variable.dtype)
            self.assign_sub(variable, variable * share)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return super().get_config() | {"backbone": self.backbone}


@keras.saving.register_keras_serializable(package="ssl_noisy")
class BackboneSGD(BackboneRate, keras.optimizers.SGD):
    """SGD with a learning rate of its own for the backbone."""


@keras.saving.register_keras_serializable(package="ssl_noisy")
class BackboneAdam(BackboneRate, keras.optimizers.Adam):
    """Adam with a learning rate of its own for the backbone."""


@keras.saving.register_keras_serializable(package="ssl_noisy")
class BackboneAdamW(BackboneRate, keras.optimizers.AdamW):
    """AdamW with a learning rate of its own for the backbone."""


@keras.saving.register_keras_serializable(package="ssl_noisy")
class BackboneMuon(BackboneRate, keras.optimizers.Muon):
    """Muon with a learning rate of its own for the backbone."""


_CLASSES = {
    "sgd": (keras.optimizers.SGD, BackboneSGD),
    "adam": (keras.optimizers.Adam, BackboneAdam),
    "adamw": (keras.optimizers.AdamW, BackboneAdamW),
    "muon": (keras.optimizers.Muon, BackboneMuon),
}


def make(
    name,
    learning_rate,
    variables,
    *,
    momentum,
    nesterov=None,
    weight_decay=0.0,
    decayed=(),
    backbone=(),
    backbone_multiplier=1.0,
):
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
        backbone: List of the `variables` that train at `backbone_multiplier` times the rate.
        backbone_multiplier: Float in (0, 1].

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
    ids = {id(variable) for variable in decayed}
    kind, options = _CLASSES[name][0], {}
    if backbone_multiplier != 1:
        kind = _CLASSES[name][1]
        own = [v for v in backbone if id(v) in ids and weight_decay]
        options["backbone"] = {
            "multiplier": backbone_multiplier,
            "paths": sorted(v.path for v in backbone),
            "decayed": sorted(v.path for v in own),
        }
        ids -= {id(v) for v in own}
    if name == "sgd":
        return kind(learning_rate, momentum=momentum, nesterov=bool(nesterov), **options)
    if name == "adam":
        return kind(learning_rate, beta_1=momentum, **options)
    if name == "adamw":
        made = kind(learning_rate, weight_decay, beta_1=momentum, **options)
    else:
        _check_dense(variables)
        made = kind(
            learning_rate,
            momentum=momentum,
            nesterov=bool(nesterov),
            weight_decay=weight_decay,
            adam_weight_decay=weight_decay,
            exclude_layers=list(LAST_LAYERS),
            **options,
        )
    made.exclude_from_weight_decay(var_list=[v for v in variables if id(v) not in ids])
    return made


def _check_dense(variables):
    """Raises the `UserError` of a network in which Muon has nothing to do."""
    hidden = [v for v in variables if not any(name in v.path for name in LAST_LAYERS)]
    if not any(len(v.shape) == 2 for v in hidden):
        raise UserError(
            "--optimizer=muon updates dense kernels below the last layer, but this network has "
            "none: AdamW would update all of it. Use --optimizer=adamw or --network=wide_lenet."
        )
