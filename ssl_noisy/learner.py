# SPDX-License-Identifier: Apache-2.0
"""The Keras model that trains a network by one method, all of it in the compiled step."""

import contextlib

import keras
import numpy as np
from keras import ops

from ssl_noisy import arguments, contract, losses, residence
from ssl_noisy.arguments import at_least, choice, count
from ssl_noisy.batches import EnterStages, IndexBatches, in_stages
from ssl_noisy.errors import UserError
from ssl_noisy.example_record import ExampleRecord
from ssl_noisy.moving_average import MovingAverage, is_random_state
from ssl_noisy.weak_views import WeakViews, kind_of

PSEUDO_LABEL_ACCURACY = "pseudo_label_accuracy"
DECAYED = ("kernels", "all")


class Learner(WeakViews, ExampleRecord, MovingAverage, keras.Model):
    """Base of all methods: a network, the data of a task, and one objective.

    The images are on the device; a batch from the host is only a dict of example indices. (Images
    that are too large stay on the host, and a batch has those of its indices too: see `Task`.) One
    compiled step takes the images, makes their views and the forward passes, and computes the loss,
    the update and the moving average. A method subclasses this and states

    - its arguments, as class attributes (see `arguments`);
    - `streams()`: which index streams it needs, and how many indices of each in a step;
    - `term_names`, `monitor_names`: what its objective returns;
    - `build_state()`, `build_example_state(task)`: the variables that it keeps;
    - `objective(**indices)`: views, forward passes, loss terms and monitors.

    It is an ordinary Keras model:

    ```python
    learner = FixMatch(network, task)
    learner.compile(keras.optimizers.SGD(0.03, momentum=0.9, nesterov=True))
    learner.fit(learner.batches(seed=1), steps_per_epoch=1024, epochs=10, shuffle=False)
    with learner.averaged_weights():
        learner.evaluate(task.test_images, task.test_labels)
        networks.portable(learner.network).save("model.keras")
    ```

    Given images, `learner(images)` is `network(images)`. So `evaluate` and `predict` use the live
    weights, unless they are called within `averaged_weights`. The `val_accuracy` of `fit` is that
    of the averaged weights. The resident images are not saved with the learner: after
    `keras.models.load_model`, call `attach(task)` before you continue training.

    Positional arguments:

    - `network`: A `keras.Model`, Sequential, functional or subclassed, from pixels in [0, 255], of
      shape `(batch_size, height, width, channels)`, to logits of shape `(batch_size, num_classes)`,
      without a softmax. A network that has no weights yet gets them here, if there is a task.
    - `task`: A `Task`, or None to attach one later.
    """

    batch_size: int = count(
        64, "Labeled examples per step; of methods without labels, all examples."
    )
    weight_decay: float = at_least(
        0, 5e-4, "Add half of this times the sum of squares of the decayed variables to the loss."
    )
    decayed: str = choice(
        "kernels",
        DECAYED,
        "What decays: the kernels of convolutions and dense layers, or all trainable variables.",
    )
    steps: int = count(
        None,
        "Length of the training, which ramps and milestones follow. None takes the paper's.",
        is_flag=False,
    )
    seed: int = arguments.seed(0, "Seed of the augmentation.", is_flag=False)

    term_names = ()
    monitor_names = ()
    needs_labels = True  # whether the task must have a labeled example
    needs_features = False  # whether the task must have features of the images
    finds_clusters = False  # whether the network's outputs are clusters, of any order, not classes
    begins_with_clusters = False  # whether a run begins with the last layer, too, of another run
    needs_teacher = False  # whether the constructor takes a `teacher`, a finished network
    needs_pixels = False  # whether it makes views that frozen features cannot have
    learns_features = False  # whether an evaluation measures the features of `featured_networks`
    removes_labels = False  # whether a run first makes passes that find labels to leave out
    validates = False  # whether `fit` runs, whose calls of `evaluate` are its validation
    # How the paper trains, here FixMatch's. A run's flags of the same names override it.
    training_defaults = {
        "steps": 2**20,
        "steps_per_epoch": 1024,
        "optimizer": "sgd",
        "learning_rate": 0.03,
        "schedule": "cosine_7_16",
        "momentum": 0.9,
        "nesterov": True,
    }

    def __init__(self, network, task=None, *, name=None, **given):
        values = self.checked_arguments(**given)
        super().__init__(name=name, dtype=network.dtype_policy)
        vars(self).update(vars(values))
        self.num_classes = contract.num_logits(network, task)
        self.network = network
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        random_states = [self.seed_generator.state]
        random_states += [v for v in network.non_trainable_variables if is_random_state(v)]
        self.states = {f"random_state_{i}": state for i, state in enumerate(random_states)}
        self.loaded_states = {}
        self.step = self.add_state("step", np.int32(0))
        self.first_nonfinite_step = self.add_state("first_nonfinite_step", np.int32(-1))
        self.build_networks()
        self.build_averages()
        names = [*self.term_names, "weight_decay_loss", *self.monitor_names]
        if "mask_rate" in self.monitor_names and not self.finds_clusters:
            names.append(PSEUDO_LABEL_ACCURACY)
        self.trackers = {name: keras.metrics.Mean(name=name) for name in names}
        self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        self.build_state()
        self.task = None
        if task is not None:
            self.attach(task)
        self.built = True

    @classmethod
    def checked_arguments(cls, **given):
        if given.get("steps") is None:
            given["steps"] = cls.training_defaults["steps"]
        return super().checked_arguments(**given)

    def build_networks(self):
        """Creates the networks that are trained beside `network`; here none."""

    def build_state(self):
        """Creates what a method keeps beside the network: variables by `add_state`, and layers.

        It is called once, when the arguments, `network` and `num_classes` are there.
        """

    def build_example_state(self, task):
        """Creates the state of each example, such as `self.targets = self.add_state(...)`.

        It is called by `attach`. The first dimension of each array is `task.num_examples`.
        """

    def add_state(self, name, value):
        """Returns a new variable that starts as the array `value`, is no weight, and is saved.

        If the learner was loaded from a file, the state of an example starts as it was saved.
        """
        value = self.loaded_states.pop(name, value)
        self.states[name] = self.add_weight(
            name=name,
            shape=value.shape,
            dtype=value.dtype.name,
            initializer=lambda shape, dtype: ops.convert_to_tensor(value, dtype),
            trainable=False,
            autocast=False,
        )
        return self.states[name]

    def save_own_variables(self, store):
        # By name, and with the random states, which Keras does not save.
        for name, variable in self.states.items():
            store[name] = ops.convert_to_numpy(variable.value)
        for name, value in self.loaded_states.items():
            store[name] = value

    def load_own_variables(self, store):
        for name, variable in self.states.items():
            variable.assign(store[name])
        # State of each example waits for `attach`.
        new = set(store.keys()) - set(self.states)
        self.loaded_states = {name: np.array(store[name]) for name in new}

    # Data: on the device or on the host, drawn by index.

    def attach(self, task):
        """Puts the data of `task` on the device, once, before `fit`.

        Images that are too large stay on the host: see `Task`.

        Raises:
            UserError: If there is a task already: the compiled step holds its images. Or if no
                example has a label and the method needs one. Or if there are no features and the
                method needs them. Or if it is a task of frozen features that lacks views that the
                method draws. Or if the network does not turn the images into one logit for each
                class. Or if they must be on the device and are too large.
        """
        if self.task is not None:
            raise UserError("This learner has a task. Make a new learner for another one.")
        if self.needs_labels and not len(task.labeled):
            raise UserError(
                f"{type(self).__name__} must have a labeled example. Received: given_labels are "
                f"all -1, of {task.num_examples} examples"
            )
        if task.views is not None:
            self.check_views(task.views)
        if self.needs_features and task.features is None:
            raise UserError(
                f"{type(self).__name__} needs a row of features of each image, such as those of a "
                "network that SimCLR trained: Task(..., features=features). Received: "
                "features=None"
            )
        contract.check(self.network, task.image_shape, task.num_classes)
        for value in self.loaded_states.values():
            if len(value) != task.num_examples:
                raise UserError(
                    f"This {type(self).__name__} was saved with another task, of {len(value)} "
                    f"examples. Attach that task. Received: one of {task.num_examples} examples"
                )
        self.build_example_state(task)
        self.build_record(task)
        self.task = task
        self.resident = residence.of(task)
        self.stage = self.stages()[0]
        self.weak_kind = kind_of(self.weak_augmentation, task.flip)

    def streams(self):
        """Returns a dict from stream name (`labeled`, `unlabeled`) to its indices a step.

        If their number grows (see `stages`), it is the final one.
        """
        return {"labeled": self.batch_size}

    def stages(self):
        """Returns the `Stage`s of training, each with batches of its own size: here one."""
        return in_stages({0: self.streams()})

    def enter(self, stage):
        """Prepares the step for the batch sizes of a `Stage`. `fit` does so."""
        self.stage = stage
        if keras.backend.backend() == "tensorflow" and self.train_function is not None:
            # Keras traces the step for batches of any size, and the sizes are fixed in it.
            self.make_train_function(force=True)

    def images_per_step(self):
        """Returns how many images a step passes through a network and back: what it costs."""
        return sum(self.streams().values())

    def pools(self):
        """Returns a dict from stream name to the positions that it draws from."""
        return {"labeled": self.task.labeled}

    def partners(self):
        """Returns a dict from the name of each stream without a pool to its `Partners`: here none.

        It is asked before an epoch, so the tables are the same throughout it.
        """
        return {}

    def batches(self, seed=0, start=0, true_labels=None):
        """Returns the endless `IndexBatches` to `fit` on.

        Args:
            seed: Integer, the order of the examples.
            start: The step of the first batch, to go on from there.
            true_labels: Optional int array `(num_examples,)`, -1 where unknown: to
                measure pseudo-labels. They reach metrics only, never the objective.

        Raises:
            ValueError: If no task is attached, or the learner is compiled with a loss or metrics,
                which its objective replaces.
        """
        compiled = (self.get_compile_config() or {}) if self.compiled else {}
        for name in ("loss", "metrics", "weighted_metrics"):
            if compiled.get(name):
                raise UserError(
                    f"{type(self).__name__} has its own loss and metrics: call `compile` without "
                    f"`{name}`. Received: {name}={compiled[name]}"
                )
        if self.task is None:
            raise UserError(
                f"This {type(self).__name__} has no data. Call `attach(task)` before training."
            )
        stages = self.stages()
        if len(stages) > 1 and self.compiled and self.steps_per_execution > 1:
            raise UserError(
                "`curriculum_batch_size` needs steps_per_execution=1. Received: "
                f"steps_per_execution={self.steps_per_execution}"
            )
        pools = self.pools()
        for name, pool in pools.items():
            if len(pool) == 0:
                raise UserError(
                    f"{type(self).__name__} draws {name} examples, and the task has none. Label "
                    f"fewer of them (--num_labels). Received: {len(self.task.labeled)} of "
                    f"{self.task.num_examples} labeled"
                )
        return IndexBatches(
            pools,
            stages,
            seed,
            true_labels=true_labels,
            start=start,
            images=self.resident.sent,
            partners=self.partners(),
        )

    def images(self, indices):
        """Takes images as float32 pixels `(batch_size, height, width, channels)` in [0, 255].

        Of a task of frozen features, it takes `(batch_size, num_rows, num_features)`.

        Within a step, `indices` must be of its streams: a part of one, several, in any order.
        """
        return self.resident.take(indices)

    def given_labels(self, indices):
        """Takes given labels, int32 `(batch_size,)`."""
        return ops.take(self.resident.given_labels, indices, axis=0)

    def fraction_done(self):
        """Returns the fraction of the training that is done, a float32 scalar in [0, 1]."""
        return ops.minimum(ops.cast(self.step.value, "float32") / self.steps, 1.0)

    # The step, through Keras's own call, compute_loss and compute_metrics.

    def objective(self, **indices):
        """Makes the views and forward passes of one step, and the loss terms.

        Args:
            **indices: For each stream an int32 tensor of its static size.

        Returns:
            A dict with `terms` (dict from each of `term_names` to the scalar that is added
            to the loss), `monitors` (dict from each of `monitor_names` to a scalar), and
            where the method has them `pseudo_labels` and `mask`, of the unlabeled
            stream's shape.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `objective`.")

    def call(self, inputs, training=None):
        if not isinstance(inputs, dict):
            return self.classifier(inputs, training=training)
        # Keras feeds batches of unknown size on TensorFlow; the step needs static shapes.
        indices = {n: ops.reshape(inputs[n], (size,)) for n, size in self.stage.sizes.items()}
        with self.resident.step(indices, inputs):
            outcome = self.objective(**indices)
        self.step.assign_add(1)
        return outcome

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not isinstance(y_pred, dict):  # `evaluate` on images and labels
            values = losses.cross_entropy(ops.cast(ops.reshape(y, (-1,)), "int32"), y_pred)
            if sample_weight is not None:  # as Keras: the sum over the batch's size
                values *= ops.cast(ops.reshape(sample_weight, (-1,)), "float32")
            return ops.mean(values)
        terms = dict(y_pred["terms"])
        terms["weight_decay_loss"] = self.weight_decay * losses.l2(self.decayed_variables())
        for key, value in {**terms, **y_pred["monitors"]}.items():
            self.trackers[key].update_state(value)
        loss = sum([*terms.values(), *self.losses])  # the latter of the network's own layers
        is_first = (self.first_nonfinite_step < 0) & ~ops.isfinite(loss)
        self.first_nonfinite_step.assign(
            ops.where(is_first, self.step.value, self.first_nonfinite_step.value)
        )
        return loss

    @property
    def networks(self):
        """All networks that are trained: here `network` alone."""
        return (self.network,)

    @property
    def classifier(self):
        """The model that is evaluated and handed out: here `network`."""
        return self.network

    def decayed_parts(self):
        """Returns the layers and models whose variables decay."""
        return self.networks

    def decayed_variables(self):
        """Returns the variables that `weight_decay` draws to zero, as `decayed` says."""
        variables = [v for part in self.decayed_parts() for v in part.trainable_variables]
        return [v for v in variables if v.name == "kernel" or self.decayed == "all"]

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if not isinstance(y_pred, dict):
            self.accuracy.update_state(y, y_pred, sample_weight)
            results = self.get_metrics_result()
            return {key: results[key] for key in ("accuracy", "loss")}
        if y is not None and "pseudo_labels" in y_pred:
            true_labels = ops.cast(ops.reshape(y["unlabeled"], y_pred["mask"].shape), "int32")
            known = ops.cast(true_labels >= 0, "float32")
            self.trackers[PSEUDO_LABEL_ACCURACY].update_state(
                ops.cast(y_pred["pseudo_labels"] == true_labels, "float32"),
                sample_weight=y_pred["mask"] * known,
            )
        results = self.get_metrics_result()
        unmeasured = {"accuracy", *([PSEUDO_LABEL_ACCURACY] if y is None else [])}
        return {key: value for key, value in results.items() if key not in unmeasured}

    def fit(self, x=None, *args, **kwargs):
        """Trains on `batches()`, as `keras.Model.fit` does.

        With `validation_data=(images, labels)`, `val_accuracy` and `val_loss` are those of the
        averaged weights: what `evaluate` returns within `averaged_weights`.

        Args:
            x: What `batches()` returns, or another data set of dicts of indices.
            *args, **kwargs: As in Keras. `batches()` is endless, so `steps_per_epoch` is required.

        Raises:
            UserError: If `x` is something else, such as images, or `steps_per_epoch` is missing.
        """
        if x is None or isinstance(x, dict) or hasattr(x, "shape"):
            self.check_indices(x)
        if isinstance(x, IndexBatches):
            if kwargs.get("steps_per_epoch") is None:
                raise UserError(self.right_call("steps_per_epoch=None, of endless batches"))
            kwargs.setdefault("shuffle", False)  # they are in random order; Keras would warn
            if len(x.stages) > 1:
                given = keras.tree.flatten(kwargs.get("callbacks"))
                kwargs["callbacks"] = [EnterStages(x), *(one for one in given if one is not None)]
        if self.compiled:
            # TensorFlow traces a step twice if the first trace creates variables.
            self.optimizer.build(self.trainable_variables)
        self.validates = True
        try:
            return super().fit(x, *args, **kwargs)
        finally:
            self.validates = False

    def train_on_batch(self, x, *args, **kwargs):
        """Trains on one batch, a dict of indices, as `keras.Model.train_on_batch` does."""
        self.check_indices(x)  # before JAX takes the state
        return super().train_on_batch(x, *args, **kwargs)

    def evaluate(self, *args, **kwargs):
        """Measures loss and accuracy on images and labels, as `keras.Model.evaluate` does.

        Uses the live weights; within `averaged_weights`, and while `fit` runs, the averaged ones.
        """
        with self.averaged_weights() if self.validates else contextlib.nullcontext():
            return super().evaluate(*args, **kwargs)

    def check_indices(self, x):
        """Raises the error of a batch that is no dict of the indices of all streams."""
        if not isinstance(x, dict) or not self.resident.keys(self.streams()) <= set(x):
            self.train_function = None  # TensorFlow cannot use it after a failed first call
            raise UserError(self.right_call(received(x)))

    def right_call(self, received):
        """Returns the error message of a call that does not train on batches of indices."""
        return (
            f"{type(self).__name__} holds the images of its task and trains on batches of their "
            "indices. Call learner.fit(learner.batches(), steps_per_epoch=1000). Received: "
            f"{received}"
        )

    def train_step(self, *args):
        x = keras.utils.unpack_x_y_sample_weight(args[-1])[0]  # JAX passes the state first
        self.check_indices(x)
        # The moving average follows the update, which Keras's `call` and `compute_loss` precede.
        if keras.backend.backend() != "jax":
            logs = super().train_step(*args)
            self.after_update()
            return logs
        logs, (trainable, non_trainable, optimizer, metrics) = super().train_step(*args)
        now = [
            *zip(self.trainable_variables, trainable),
            *zip(self.non_trainable_variables, non_trainable),
        ]
        with keras.StatelessScope(state_mapping=now) as scope:
            self.after_update()
        non_trainable = [scope.get_current_value(v) for v in self.non_trainable_variables]
        return logs, (trainable, non_trainable, optimizer, metrics)

    def get_config(self):
        return {
            "network": keras.saving.serialize_keras_object(self.network),
            "name": self.name,
            **{name: getattr(self, name) for name in self.arguments()},
        }

    @classmethod
    def from_config(cls, config):
        network = keras.saving.deserialize_keras_object(config["network"])
        return cls(network, **{k: v for k, v in config.items() if k != "network"})


def received(x):
    """Returns what the error about a wrong argument of `fit` says of it."""
    if isinstance(x, dict):
        return f"x with the keys {sorted(x)}"
    return f"x of shape {tuple(x.shape)}" if hasattr(x, "shape") else f"x={x}"
