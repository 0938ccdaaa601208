# SPDX-License-Identifier: Apache-2.0
"""MoCo v2: a view finds the key of its image among those of a queue, made by a slow encoder."""

import keras
import numpy as np
from keras import ops

from ssl_noisy import contract, losses, networks
from ssl_noisy.arguments import count, momentum, switch
from ssl_noisy.errors import UserError
from ssl_noisy.moving_average import is_random_state
from ssl_noisy.self_supervised import ContrastiveLearner

FINDING_TEMPERATURE = 0.05  # that of CSVAL's scripts


@keras.saving.register_keras_serializable(package="ssl_noisy")
class MoCoV2(ContrastiveLearner):
    """Learns features, without labels, by which an image's view is recognized in a long queue.

    One view of each image is a query. The other is a key, made by the key encoder: a moving average
    of the network and its projection, without gradient. A query must be nearer to its own key than
    to all keys of the queue (`losses.queue_contrastive`), which has those of the last batches.

    Batch norm normalizes queries and keys in `batch_norm_splits` parts of a batch, and keys are
    shuffled before, so that the statistics of its part do not tell which key belongs to a query.

    For each image, the learner keeps how often its query finds its key: see `image_statistics`.

    The network's last layer learns the given labels, if there are any, by a gradient that stops
    there: the accuracy of a run is that of a linear probe.

    Defaults are those of the authors' demo for CIFAR-10 (facebookresearch/moco, branch
    `colab-notebook`, f736491): 200 epochs of 97 batches of 50,000 images. Departures from it:

    - The projection has two layers, as in the paper; `projection_layers=1` is that of the demo.
    - The rate changes with each step, there with each epoch.
    - The jitter changes brightness, contrast, saturation and hue in this order, there in a random
      one.
    - The momentum of batch norm's running statistics warms up.
    - The demo's nearest neighbors are those of projections, here of features.

    The paper's setting for ImageNet has `key_momentum=0.999`, `queue_size=65536`, a temperature of
    0.2, crops from 20 % of the area on, and blurs half of the views.

    Reference:
        [Chen et al., 2020](https://arxiv.org/abs/2003.04297), with the queue and the key encoder of
        [He et al., 2020](https://arxiv.org/abs/1911.05722), section 3.
    """

    queue_size: int = count(4096, "Keys of earlier batches among which a view finds its own.")
    key_momentum: float = momentum(0.99, "Momentum of the key encoder, at each update.")
    batch_norm_splits: int = count(
        8, "Parts of a batch that batch norm normalizes separately, like as many devices."
    )
    symmetric_loss: bool = switch(
        False, "Each view is a query and a key, at twice the cost: add both losses."
    )
    smallest_crop: float = ContrastiveLearner.smallest_crop.with_default(0.08)

    training_defaults = ContrastiveLearner.training_defaults | {
        "steps": 19_400,  # 200 epochs
        "steps_per_epoch": 970,
        "learning_rate": 0.06,
        "schedule": "half_cosine",
    }

    @classmethod
    def check_arguments(cls, values):
        super().check_arguments(values)
        size = values.batch_size * (2 if values.symmetric_loss else 1)
        is_valid = values.queue_size >= size
        requirement = f"at least the number of keys in a step, {size}"
        cls.require(is_valid, "queue_size", values.queue_size, requirement)
        splits = values.batch_norm_splits
        requirement = f"at most batch_size={values.batch_size}"
        cls.require(splits <= values.batch_size, "batch_norm_splits", splits, requirement)

    def build_state(self):
        super().build_state()
        self.encoded = contract.backbone_variables(self.network)
        self.encoded += self.projection.trainable_variables
        self.key_weights = [
            self.add_state(f"key_{i}", ops.convert_to_numpy(v.value))
            for i, v in enumerate(self.encoded)
        ]
        queue = np.random.default_rng(self.seed).normal(
            size=(self.queue_size, self.projection_size)
        )
        queue /= np.linalg.norm(queue, axis=1, keepdims=True)
        self.queue = self.add_state("queue", queue.astype("float32"))
        self.queue_end = self.add_state("queue_end", np.int32(0))

    def build_example_state(self, task):
        super().build_example_state(task)
        # Of each image: draws, the sum of the chances to find its key, and that of their squares.
        zeros = np.zeros((task.num_examples, 3), "float32")
        self.findings = self.add_state("findings", zeros)

    def image_statistics(self):
        """Returns what the training showed about each image, a dict of arrays `(num_examples,)`.

        The chance with which a query finds its key in the queue, at a temperature of 0.05: its mean
        over the epochs, `confidence`, and its standard deviation, `variability`, float64. Both are
        NaN for an image that was never drawn.

        Reference:
            [Chen et al., 2023](https://arxiv.org/abs/2210.02442), section 3, and their code
            (c-liangyu/CSVAL, 260f1f0).
        """
        count, total, squares = ops.convert_to_numpy(self.findings.value).astype("float64").T
        with np.errstate(invalid="ignore"):
            mean = total / count
            variance = squares / count - mean**2
        return {"confidence": mean, "variability": np.sqrt(np.maximum(variance, 0))}

    def count_findings(self, indices, queries, keys):
        """Adds the chance of each image's query to find its key."""
        minus_logs = losses.queue_contrastive(queries, keys, self.queue.value, FINDING_TEMPERATURE)
        chances = ops.stop_gradient(ops.exp(-minus_logs))
        added = ops.stack([ops.ones_like(chances), chances, chances**2], axis=1)
        self.findings.assign(
            ops.scatter_update(self.findings.value, indices[:, None], added, reduction="add")
        )

    def attach(self, task):
        if self.batch_norm_splits > 1 and not networks.can_pass_apart(self.network):
            raise UserError(
                "`batch_norm_splits` needs a Sequential or functional network of Keras's layers, "
                "whose batch normalization, if any, is this kit's and of images. Use "
                f"batch_norm_splits=1. Received: {self.network.name!r}, "
                f"batch_norm_splits={self.batch_norm_splits}"
            )
        super().attach(task)

    def images_per_step(self):
        return (2 if self.symmetric_loss else 1) * self.batch_size

    def objective(self, unlabeled):
        first, second = ops.split(self.two_views(unlabeled), 2)
        pairs = [(first, second), (second, first)][: 2 if self.symmetric_loss else 1]
        found = [(*self.queries(one), self.keys(other)) for one, other in pairs]
        contrastive = sum(
            ops.mean(
                losses.queue_contrastive(
                    queries, keys, self.queue.value, self.contrastive_temperature
                )
            )
            for queries, _, keys in found
        )
        self.count_findings(unlabeled, found[0][0], found[0][2])
        self.enqueue(ops.concatenate([keys for _, _, keys in found]))
        probe = self.probe_loss(unlabeled, ops.concatenate([logits for _, logits, _ in found]))
        return self.outcome(contrastive, probe, found[0][0], found[0][2])

    def parts(self):
        """Returns the context in which batch norm normalizes the parts of a batch separately."""
        parts = np.array_split(np.arange(self.batch_size), self.batch_norm_splits)
        sizes = tuple(map(len, parts))
        return networks.apart(self.network, sizes, follows_all=True)

    def queries(self, views):
        """Returns projections and logits of views by the network."""
        with self.parts():
            features, logits = self.featured_networks[0](views, training=True)
        return losses.unit_length(self.projection(features)), logits

    def keys(self, views):
        """Returns projections of views by the key encoder, which sees them in random order."""
        uniform = keras.random.uniform((views.shape[0],), dtype="float32", seed=self.seed_generator)
        order = ops.argsort(uniform)
        keys = self.encoded_keys(ops.take(views, order, axis=0))
        return ops.take(keys, ops.argsort(order), axis=0)

    def encoded_keys(self, views):
        """Returns projections of views by the key encoder, `(batch_size, projection_size)`.

        Its running statistics would have no use: it is always in training mode.
        """
        model, slow = self.featured_networks[0], dict(zip(map(id, self.encoded), self.key_weights))
        fixed = model.non_trainable_variables
        weights = [slow.get(id(v), v).value for v in model.trainable_variables]
        with self.parts():
            (features, _), others = model.stateless_call(
                weights, [v.value for v in fixed], views, training=True
            )
        for variable, value in zip(fixed, others):
            if is_random_state(variable):
                variable.assign(value)
        weights = [slow[id(v)].value for v in self.projection.trainable_variables]
        projected, _ = self.projection.stateless_call(weights, [], features)
        return ops.stop_gradient(losses.unit_length(projected))

    def enqueue(self, keys):
        """Writes keys over the oldest ones of the queue, of which there are at least as many."""
        places = (self.queue_end.value + ops.arange(keys.shape[0])) % self.queue_size
        self.queue.assign(ops.scatter_update(self.queue.value, places[:, None], keys))
        self.queue_end.assign((self.queue_end.value + keys.shape[0]) % self.queue_size)

    def after_update(self):
        super().after_update()
        for slow, variable in zip(self.key_weights, self.encoded):
            slow.assign(self.key_momentum * slow + (1 - self.key_momentum) * variable)
