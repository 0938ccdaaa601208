# SPDX-License-Identifier: Apache-2.0
"""What a learner records about each labeled example, in the compiled step."""

from keras import ops

from ssl_noisy.arguments import Configured, switch
from ssl_noisy.errors import UserError
from ssl_noisy.labels import record


class ExampleRecord(Configured):
    """Part of `Learner`: a row per example, which `observe` updates."""

    record_examples: bool = switch(
        True,
        "Record margins, losses, mean probabilities, agreement and forgetting of every labeled "
        "example.",
    )

    def build_record(self, task):
        """Creates the record of the examples of `task`."""
        if self.record_examples:
            rows = record.initial(task.num_examples, task.num_classes)
            self.record_rows = self.add_state("record_rows", rows)

    def observed_logits(self, indices):
        """Returns the logits of weak views of `indices`, in training mode, and records them."""
        logits = self.network(self.weak_view(self.images(indices), indices), training=True)
        self.observe(indices, logits)
        return logits

    def observe(self, indices, logits):
        """Takes a forward pass into the record of the examples: once an objective.

        Args:
            indices: int32 `(batch_size,)`. Those without a given label are passed over.
            logits: Float `(batch_size, num_classes)`, from before the update, in training mode
                where the method has such a pass.
        """
        if not self.record_examples:
            return
        rows = self.record_rows.value
        self.record_rows.assign(record.updated(rows, indices, self.given_labels(indices), logits))

    def example_record(self, positions=slice(None)):
        """Returns the record of the examples at `positions` as arrays: see `record.read`.

        Raises:
            ValueError: If there is none, with `record_examples=False`.
        """
        if not self.record_examples:
            raise UserError("There is no record: this learner has record_examples=False.")
        rows = ops.convert_to_numpy(self.record_rows.value)
        return record.read(rows[positions], self.task.given_labels[positions])

    def image_statistics(self):
        """Returns what the method itself learned about each image, labeled or not.

        Returns:
            A dict from a name to a float array of shape `(num_examples,)`, NaN where unknown. A run
            writes it to `images.csv`.
        """
        return {}

    def detected(self):
        """Returns what the method itself says of the labels, from what it keeps.

        Returns:
            A dict from the detector's name to `(score, flagged)`, arrays of shape
            `(num_examples,)`: float in [0, 1], larger where the label is more suspicious, NaN
            where it does not know, and bool. A run reports them beside the detectors of the
            record; which labels are issues is decided by one rule for all methods
            (`issues.decide`).
        """
        return {}
