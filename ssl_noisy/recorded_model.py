# SPDX-License-Identifier: Apache-2.0
"""The model that `Recorder.watch` returns."""

import keras

from ssl_noisy import contract
from ssl_noisy.errors import UserError

INPUTS, POSITION = "inputs", "position"  # the keys of numbered inputs


@keras.saving.register_keras_serializable(package="ssl_noisy")
class RecordedModel(keras.Model):
    """What `Recorder.watch` returns: a model whose training steps are recorded.

    Args:
        network: A `keras.Model`.
        recorder: A `Recorder`.
    """

    def __init__(self, network, recorder, *, name=None):
        _check_network(network, recorder)
        super().__init__(name=name, dtype=network.dtype_policy)
        self.network, self.recorder = network, recorder
        self.built = network.built

    def call(self, inputs, training=None):
        inputs = inputs[INPUTS] if _is_numbered(inputs) else inputs
        return self.network(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if training:
            _require_numbered(x)
            self.recorder(x[POSITION], y, y_pred)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs
    ):
        """Trains as `keras.Model.fit` does. Arrays are numbered in their order."""
        if hasattr(x, "element_spec"):
            _require_numbered(x.element_spec[0] if isinstance(x.element_spec, tuple) else None)
        elif y is not None and not _is_numbered(x):
            x = self.recorder.numbered(x)
        if isinstance(callbacks, keras.callbacks.Callback):
            callbacks = [callbacks]
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = [_Check(self.recorder), *(callbacks or [])]
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def train_on_batch(self, x, *args, **kwargs):
        """Trains on one batch of numbered inputs, as `keras.Model.train_on_batch` does."""
        _require_numbered(x)  # before JAX takes the state
        return super().train_on_batch(x, *args, **kwargs)

    def get_config(self):
        return {
            "network": keras.saving.serialize_keras_object(self.network),
            "recorder": keras.saving.serialize_keras_object(self.recorder),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        parts = ("network", "recorder")
        made = {name: keras.saving.deserialize_keras_object(config[name]) for name in parts}
        return cls(**made, name=config["name"])


class _Check(keras.callbacks.Callback):
    """Ends a training whose positions, labels or outputs are wrong after its first epoch."""

    def __init__(self, recorder):
        super().__init__()
        self.recorder = recorder

    def on_epoch_end(self, epoch, logs=None):
        self.recorder.check()


def _check_network(network, recorder):
    if not isinstance(network, keras.Model):
        raise UserError(f"`watch` takes a `keras.Model`. Received: {type(network).__name__}")
    for method in ("train_step", "compute_loss"):
        if getattr(type(network), method) is not getattr(keras.Model, method):
            raise UserError(
                f"`watch` takes a model that Keras trains. Received: {type(network).__name__}, "
                f"with its own `{method}`. Call `recorder(positions, labels, outputs)` there."
            )
    shape = getattr(network, "output_shape", None)  # unknown before the first call
    expected = recorder.num_classes
    is_one = isinstance(shape, tuple) and (not shape or not isinstance(shape[0], tuple))
    if shape is not None and (not is_one or len(shape) != 2 or shape[-1] != expected):
        raise UserError(
            f"`watch` takes a model with one output tensor of shape (batch_size, {expected}), one "
            f"value per class. Received: output_shape={shape}"
        )
    activation = contract.last_activation(network, expected)
    if recorder.from_logits and activation is not None:
        raise UserError(
            f"The model ends in a {activation}. Pass `from_logits=False` to `Recorder`, or remove "
            "the activation. Received: from_logits=True"
        )
    if activation == "sigmoid":
        raise UserError("`watch` takes a softmax over the classes. Received: a sigmoid")


def _is_numbered(x):
    return isinstance(x, dict) and set(x) == {INPUTS, POSITION}


def _require_numbered(x):
    if not _is_numbered(x):
        kind = f"inputs with the keys {sorted(x)}" if isinstance(x, dict) else "inputs without them"
        raise UserError(
            "A recorded model trains on inputs with the positions of their examples. Pass arrays "
            "to `fit`, or `recorder.numbered(dataset)`, or batches of ({'inputs': ..., 'position': "
            f"...}}, labels). Received: {kind}"
        )
