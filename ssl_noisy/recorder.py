# SPDX-License-Identifier: Apache-2.0
"""The record of each label for your own Keras model, your own data and your own `fit`."""

import dataclasses

import keras
import numpy as np
from keras import ops

from ssl_noisy.errors import UserError
from ssl_noisy.labels import detection, issues, record
from ssl_noisy.recorded_model import INPUTS, POSITION, RecordedModel

# A probability of half precision may underflow to 0; the smallest one above is 6e-8.
LEAST_PROBABILITY = {"float16": 6e-8}
# What the step counts instead of raising, and what it means. One number each.
FAULTS = {
    "positions": "outside [0, {num_examples}), or -1 for an example that is not recorded. Set "
    "`num_examples` to the size of the whole training set",
    "labels": "outside [0, {num_classes}), or -1 for an unlabeled example. Set `num_classes` to "
    "the number of classes",
    "changed labels": "of examples whose label was another one before. Number the examples before "
    "you shuffle them, or call `reset()` after you change labels",
    "outputs": "that are no probabilities, with `from_logits=False`. Set `from_logits=True`, or "
    "end the model in a softmax",
}


@keras.saving.register_keras_serializable(package="ssl_noisy")
class Recorder(keras.layers.Layer):
    """Records how a Keras model learns each label, in the compiled step of its own `fit`.

    ```python
    recorder = ssl_noisy.Recorder(num_examples=len(images), num_classes=10)
    model = recorder.watch(network)  # any Keras classifier; here it returns logits
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, given_labels, epochs=20)
    recorder.to_csv("examples.csv")
    ```

    The record, the decision and the file are those of a run: see `labels.record.read`,
    `labels.issues.decide` and `labels.detection.examples_csv`. Only training steps are recorded,
    with the logits from before the update. Validation data is not.

    The step must know which example is which. `fit` numbers arrays itself. For `tf.data`, call
    `numbered(dataset)` before you shuffle and batch. A generator or a `keras.utils.PyDataset`
    yields `({"inputs": images, "position": positions}, labels)`.

    The record is a weight of this layer, so the checkpoints of the model contain it. In a
    `train_step` or `compute_loss` of your own, assign the recorder to the model and call
    `self.recorder(positions, labels, outputs)`.

    Args:
        num_examples: Positive integer, size of the training set.
        num_classes: Integer, at least 2.
        from_logits: Whether the model returns logits. If False, it returns probabilities, and the
            margins are differences of log-probabilities, which are the same numbers.
    """

    def __init__(self, num_examples, num_classes, *, from_logits=True, name=None):
        if num_examples < 1 or num_classes < 2:
            raise UserError(
                "`Recorder` must have at least 1 example and 2 classes. Received: "
                f"num_examples={num_examples}, num_classes={num_classes}"
            )
        super().__init__(trainable=False, autocast=False, dtype="float32", name=name)
        self.num_examples, self.num_classes = int(num_examples), int(num_classes)
        self.from_logits = bool(from_logits)
        columns = record.initial(1, self.num_classes).shape[1]
        self.rows = self._state("rows", (self.num_examples, columns))
        # Floats, because TensorFlow keeps integers on the host.
        self.labels = self._state("labels", (self.num_examples,), record.UNKNOWN)
        self.faults = self._state("faults", (len(FAULTS),))
        self.built = True

    def _state(self, name, shape, value=0):
        initializer = keras.initializers.Constant(value)
        return self.add_weight(
            shape, initializer, "float32", trainable=False, autocast=False, name=name
        )

    # In the step.

    def call(self, positions, given_labels, outputs):
        """Records one batch. No gradient flows.

        Args:
            positions: Integer tensor `(batch_size,)`. -1 is not recorded.
            given_labels: Integer tensor `(batch_size,)` or `(batch_size, 1)`, -1 for unlabeled
                examples, or one-hot `(batch_size, num_classes)`.
            outputs: Float tensor `(batch_size, num_classes)`, logits, or probabilities with
                `from_logits=False`.
        """
        logits, is_fault = self._logits(outputs)
        size = ops.shape(logits)[0]
        labels = self._integer_labels(given_labels, size)
        positions = ops.cast(ops.reshape(positions, (size,)), "int32")
        misplaced = (positions < record.UNKNOWN) | (positions >= self.num_examples)
        mislabeled = (labels < record.UNKNOWN) | (labels >= self.num_classes)
        known = (positions >= 0) & (labels >= 0) & ~misplaced & ~mislabeled
        positions = ops.where(known, positions, 0)
        labels = ops.where(known, labels, record.UNKNOWN)
        before = ops.cast(ops.take(self.labels.value, positions, axis=0), "int32")
        changed = known & (before >= 0) & (before != labels)
        faults = [ops.sum(ops.cast(f, "float32")) for f in (misplaced, mislabeled, changed)]
        self.faults.assign(self.faults.value + ops.stack([*faults, is_fault]))
        self.labels.assign(
            ops.scatter_update(
                self.labels.value, positions[:, None], ops.cast(labels, "float32"), reduction="max"
            )
        )
        self.rows.assign(record.updated(self.rows.value, positions, labels, logits))

    def _logits(self, outputs):
        """Returns float32 logits, and the number of outputs that cannot be probabilities."""
        shape = getattr(outputs, "shape", None)
        if shape is None or len(shape) != 2 or shape[-1] != self.num_classes:
            kind = type(outputs).__name__ if shape is None else f"outputs of shape {tuple(shape)}"
            raise UserError(
                "`Recorder` records a model with one output tensor of shape (batch_size, "
                f"{self.num_classes}), one value per class. Received: {kind}. For a model with "
                "several outputs, call `recorder(positions, labels, outputs)` on one of them in "
                "its `compute_loss`."
            )
        precision = keras.backend.standardize_dtype(outputs.dtype)
        outputs = ops.cast(ops.stop_gradient(outputs), "float32")
        if self.from_logits:
            return outputs, ops.zeros(())
        # Rounding in bfloat16 moves each probability by up to 0.4 %.
        is_off = ops.abs(ops.sum(outputs, axis=-1) - 1) > 0.05
        is_off = is_off | ops.any(outputs < 0, axis=-1)
        floor = LEAST_PROBABILITY.get(precision, 1e-30)
        logits = ops.log(ops.maximum(outputs, floor))
        return logits, ops.sum(ops.cast(is_off, "float32"))

    def _integer_labels(self, labels, size):
        shape = tuple(labels.shape)
        if len(shape) == 2 and shape[1] == self.num_classes:
            labels = ops.argmax(labels, axis=-1)
        elif len(shape) != 1 and shape[1:] != (1,):
            raise UserError(
                "`Recorder` takes integer labels of shape (batch_size,) or one-hot labels of shape "
                f"(batch_size, {self.num_classes}). Received: labels of shape {shape}"
            )
        return ops.cast(ops.reshape(labels, (size,)), "int32")

    # Around `fit`.

    def watch(self, model):
        """Returns a Keras model that trains `model`, with the same weights, and records it.

        Compile and fit the returned model. `predict`, `evaluate` and calls on plain inputs are
        those of `model`, which you can save alone.

        Args:
            model: A `keras.Model`, Sequential, functional or subclassed, with the `train_step` and
                `compute_loss` of Keras.

        Raises:
            UserError: If it has several outputs, another number of classes, a softmax with
                `from_logits=True`, or a training step of its own.
        """
        return RecordedModel(model, self)

    def numbered(self, data, positions=None):
        """Returns inputs with the positions of their examples, for `fit`.

        Args:
            data: Array `(num_examples, ...)` or a structure of arrays, the inputs of the model; or
                a `tf.data.Dataset` of single examples `(inputs, label)` or `(inputs, label,
                sample_weight)`, in the order of the positions and always the same order.
            positions: Integer array, the positions of the arrays' examples, for a part of the
                training set. Defaults to all, in order.

        Returns:
            `{"inputs": data, "position": positions}`, or a `tf.data.Dataset` with such inputs.
        """
        if hasattr(data, "enumerate"):
            self._check_dataset(data)
            return data.enumerate().map(
                lambda position, example: ({INPUTS: example[0], POSITION: position}, *example[1:])
            )
        lengths = {len(array) for array in keras.tree.flatten(data)}
        expected = self.num_examples if positions is None else len(positions)
        if lengths != {expected}:
            raise UserError(
                f"`Recorder` expects arrays of {expected} examples. Received: arrays of length "
                f"{', '.join(map(str, sorted(lengths)))}. Set `num_examples`, or number a part of "
                "the training set with `recorder.numbered(inputs, positions)`."
            )
        positions = np.arange(expected) if positions is None else np.asarray(positions)
        if positions.dtype.kind not in "iu" or np.any(
            (positions < record.UNKNOWN) | (positions >= self.num_examples)
        ):
            raise UserError(
                f"`positions` must be integers in [0, {self.num_examples}), or -1 for an example "
                f"that is not recorded. Received: {positions.dtype}, {positions.min(initial=0)} to "
                f"{positions.max(initial=0)}"
            )
        return {INPUTS: data, POSITION: positions.astype("int32")}

    def _check_dataset(self, dataset):
        spec = dataset.element_spec
        if not isinstance(spec, tuple) or len(spec) not in (2, 3):
            raise UserError(
                "`numbered` takes a data set of (inputs, label) or (inputs, label, sample_weight). "
                f"Received: elements {spec}"
            )
        shape = tuple(spec[1].shape)
        if shape not in ((), (1,), (self.num_classes,)):
            raise UserError(
                "`numbered` takes a data set of single examples, before `batch`; call `unbatch()` "
                f"on one that is batched already. Received: labels of shape {shape}"
            )
        size = int(dataset.cardinality())
        if size > self.num_examples or size == -1:  # the latter is an endless one
            raise UserError(
                f"`numbered` takes a data set of at most num_examples={self.num_examples}. "
                f"Received: {'an endless one' if size == -1 else size}. Call `repeat` afterwards."
            )

    # After the training.

    def check(self):
        """Raises `UserError` if a step met positions, labels or outputs that cannot be right."""
        for count, (name, meaning) in zip(ops.convert_to_numpy(self.faults), FAULTS.items()):
            if count:
                meaning = meaning.format(**self.get_config())
                raise UserError(f"The recorder received {int(count):,} {name} {meaning}.")

    def reset(self):
        """Forgets everything."""
        for variable, value in ((self.rows, 0), (self.labels, record.UNKNOWN), (self.faults, 0)):
            variable.assign(ops.full(variable.shape, value, dtype="float32"))

    @property
    def given_labels(self):
        """int64 array `(num_examples,)`: the label of each example, -1 if it was never seen."""
        return ops.convert_to_numpy(self.labels.value).astype("int64")

    def record(self):
        """Returns the record as a dict of arrays `(num_examples,)`: see `labels.record.read`.

        Raises:
            UserError: If positions, labels or outputs were wrong.
        """
        self.check()
        return record.read(ops.convert_to_numpy(self.rows.value), self.given_labels)

    def mean_probabilities(self):
        """Returns the mean of the probabilities during training.

        Returns:
            Float64 array `(num_examples, num_classes)`; rows of NaN for examples never seen.
        """
        self.check()
        rows = ops.convert_to_numpy(self.rows.value).astype("float64")
        return record.mean_probabilities(rows)

    def issues(self, given_labels=None):
        """Decides which labels are issues, by the rule of `labels.issues.decide`.

        Args:
            given_labels: Integer array `(num_examples,)`, -1 for unlabeled examples. Defaults to
                the labels that the steps have seen. Others are an error.

        Returns:
            An `issues.Decision` over all examples, in the order of their positions. An example
            without a label is no issue and has the quality NaN.
        """
        labels = self._labels(given_labels)
        labeled = np.flatnonzero(labels >= 0)
        decision, _, _ = self._decide(labels, labeled)
        is_issue = np.zeros(self.num_examples, bool)
        quality = np.full(self.num_examples, np.nan)
        is_issue[labeled], quality[labeled] = decision.is_issue, decision.label_quality
        return dataclasses.replace(decision, is_issue=is_issue, label_quality=quality)

    def to_csv(self, path, *, ids=None, files=None, class_names=None, given_labels=None):
        """Writes `examples.csv` as a run does: one row per labeled example.

        Args:
            path: Path of the file.
            ids: Integer array `(num_examples,)` for the column `index`. Defaults to the positions.
            files: Sequence of `num_examples` strings for the column `file`, or None.
            class_names: Sequence of `num_classes` strings. Defaults to the numbers.
            given_labels: As for `issues`.
        """
        labels = self._labels(given_labels)
        labeled = np.flatnonzero(labels >= 0)
        if class_names is not None and len(class_names) != self.num_classes:
            raise UserError(
                f"`class_names` must have {self.num_classes} names. Received: {len(class_names)}"
            )
        decision, kept, posterior = self._decide(labels, labeled)
        detection.examples_csv(
            path,
            self._of_each("ids", np.arange(self.num_examples) if ids is None else ids)[labeled],
            labels[labeled],
            kept,
            detection.detectors(kept, posterior, decision.noise_rate),
            decision.label_quality,
            decision.is_issue,
            files=None if files is None else self._of_each("files", files)[labeled],
            class_names=class_names,
        )

    def _decide(self, labels, labeled):
        self.check()
        rows = ops.convert_to_numpy(self.rows.value)
        kept = record.read(rows[labeled], labels[labeled])
        posterior = detection.fit_posterior(kept["mean_loss"])[2]
        return issues.decide(kept, posterior, labels[labeled]), kept, posterior

    def _labels(self, given_labels):
        seen = self.given_labels
        if given_labels is None:
            return seen
        given = self._of_each("given_labels", given_labels).astype("int64")
        differs = (seen >= 0) & (seen != given)
        if differs.any():
            raise UserError(
                f"`given_labels` must be the labels of the training. Received: {differs.sum():,} "
                f"others, the first at position {np.argmax(differs)}"
            )
        return given

    def _of_each(self, name, values):
        values = np.asarray(values)
        if values.shape != (self.num_examples,):
            raise UserError(
                f"`{name}` must have one value for each of the {self.num_examples} examples. "
                f"Received: shape {values.shape}"
            )
        return values

    def get_config(self):
        names = ("num_examples", "num_classes", "from_logits", "name")
        return {name: getattr(self, name) for name in names}
