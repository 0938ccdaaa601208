# SPDX-License-Identifier: Apache-2.0
"""The Keras model that trains a network by one method, all of it in the compiled step."""

import contextlib
import inspect

import keras
import numpy as np
from keras import ops

from ssl_noisy import augment, contract, losses, schedules
from ssl_noisy.batches import IndexBatches
from ssl_noisy.errors import UserError
from ssl_noisy.labels import record

PSEUDO_LABEL_ACCURACY = "pseudo_label_accuracy"
WEAK_AUGMENTATIONS = ("auto", "flip_shift", "alternating_flip_shift", "shift", "jitter", "none")
DECAYED = ("kernels", "all")
# Constructor arguments that a run sets from its own settings: no flags of a method.
RUN_ARGUMENTS = ("seed", "steps")


class Learner(keras.Model):
    """Base of all methods: a network, the resident data, and one objective.

    The images lie on the device; a batch from the host is only a dict of
    example indices. Taking the images, their views, the forward passes, the
    loss, the update and the moving average are one compiled step. A method
    subclasses this and states

    - `streams()`: which index streams it needs, and how many of each a step;
    - `term_names`, `monitor_names`: what its objective returns;
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
    `keras.models.load_model`, call `attach(task)` before training on.

    Args:
        network: A `keras.Model`, Sequential, functional or subclassed, from pixels in [0, 255], of
            shape `(batch_size, height, width, channels)`, to logits of shape
            `(batch_size, num_classes)`, without a softmax. One that has no weights yet gets them
            here, if there is a task.
        task: A `Task`, or None to attach one later.
        batch_size: Positive integer, labeled examples a step.
        weight_decay: Float >= 0. Adds `weight_decay / 2` times the sum of squares of
            the decayed variables to the loss.
        decayed: Which variables those are: `kernels` (of convolutions and dense layers,
            no bias, no batch norm) or `all` (every trainable variable of the network).
        ema_momentum: Float in [0, 1), momentum of the moving average of the
            trainable weights. 0 turns it off.
        ema_warmup: Whether that momentum is at most (1 + n) / (10 + n) at the n-th update, so
            that the average forgets the initial weights in a short training too. At 0.999 it has
            no effect after 8990 updates.
        average_statistics: Whether the moving average covers batch norm's running
            statistics too; otherwise the averaged network has the live ones.
        weak_augmentation: One of `auto` (flip and shift, or shift alone for
            data sets whose classes do not survive a flip), `flip_shift`,
            `alternating_flip_shift`, `shift`, `jitter` (colors, half the shift, and a
            flip as `auto`), `none`.
        record_examples: Whether to keep a record of every labeled example: margins, losses,
            mean probabilities, agreement, forgetting (see `record`).
        steps: Integer, the length of the training, which ramps and milestones
            follow. None takes `training_defaults["steps"]`.
        seed: Integer, the seed of the augmentation.
    """

    term_names = ()
    monitor_names = ()
    removes_labels = False  # whether a run first makes passes that find labels to leave out
    validates = False  # whether `fit` runs, whose calls of `evaluate` are its validation
    always_averages = False  # whether there is an average of the weights with `ema_momentum=0` too
    # How the paper trains, here FixMatch's; a run's flags of the same names override it.
    training_defaults = {
        "steps": 2**20,
        "steps_per_epoch": 1024,
        "learning_rate": 0.03,
        "schedule": "cosine_7_16",
        "momentum": 0.9,
        "nesterov": True,
    }

    def __init__(
        self,
        network,
        task=None,
        *,
        batch_size: int = 64,
        weight_decay: float = 5e-4,
        decayed: str = "kernels",
        ema_momentum: float = 0.999,
        ema_warmup: bool = True,
        average_statistics: bool = False,
        weak_augmentation: str = "auto",
        record_examples: bool = True,
        steps: int | None = None,
        seed: int = 0,
        name=None,
    ):
        super().__init__(name=name, dtype=network.dtype_policy)
        self.num_classes = contract.num_logits(network, task)
        self.check_at_least(1, batch_size=batch_size)
        self.check_at_least(0, weight_decay=weight_decay)
        self.check_choice("decayed", decayed, DECAYED)
        self.check_momentum(ema_momentum=ema_momentum)
        self.check_choice("weak_augmentation", weak_augmentation, WEAK_AUGMENTATIONS)
        self.check_argument("steps", steps, steps is None or steps >= 1, "at least 1, or None")
        self.network = network
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.decayed = decayed
        self.ema_momentum = ema_momentum
        self.ema_warmup = ema_warmup
        self.average_statistics = average_statistics
        self.weak_augmentation = weak_augmentation
        self.record_examples = record_examples
        self.steps = self.training_defaults["steps"] if steps is None else steps
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        random_states = [self.seed_generator.state]
        random_states += [v for v in network.non_trainable_variables if is_random_state(v)]
        self.states = {f"random_state_{i}": state for i, state in enumerate(random_states)}
        self.loaded_states = {}
        self.step = self.add_state("step", np.int32(0))
        self.first_nonfinite_step = self.add_state("first_nonfinite_step", np.int32(-1))
        averaged = [*network.trainable_variables]
        averaged += self.running_statistics if average_statistics else []
        self.averaged_variables = averaged if ema_momentum or self.always_averages else []
        self.averages = [
            self.add_state(f"average_{i}", ops.convert_to_numpy(v.value))
            for i, v in enumerate(self.averaged_variables)
        ]
        self.trackers = {
            key: keras.metrics.Mean(name=key)
            for key in (*self.term_names, "weight_decay_loss", *self.monitor_names)
        }
        if "mask_rate" in self.monitor_names:
            self.trackers[PSEUDO_LABEL_ACCURACY] = keras.metrics.Mean(name=PSEUDO_LABEL_ACCURACY)
        self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        self.task = None
        if task is not None:
            self.attach(task)
        self.built = True

    def check_argument(self, name, value, is_valid, requirement):
        """Raises the `ValueError` of an argument out of its range, or infinite."""
        if not is_valid or value == float("inf"):
            raise UserError(
                f"The `{name}` argument of `{type(self).__name__}` must be {requirement}. "
                f"Received: {name}={value}"
            )

    def check_choice(self, name, value, choices):
        """Raises the `ValueError` of an argument that is none of `choices`."""
        self.check_argument(name, value, value in choices, "one of " + ", ".join(choices))

    def check_at_least(self, minimum, **arguments):
        """Raises the `ValueError` of the first argument below `minimum`, or not finite."""
        for name, value in arguments.items():
            self.check_argument(name, value, value >= minimum, f"at least {minimum}")

    def check_share(self, **arguments):
        """Raises the `ValueError` of the first argument outside [0, 1]."""
        for name, value in arguments.items():
            self.check_argument(name, value, 0 <= value <= 1, "in [0, 1]")

    def check_momentum(self, **arguments):
        """Raises the `ValueError` of the first argument outside [0, 1)."""
        for name, value in arguments.items():
            self.check_argument(name, value, 0 <= value < 1, "in [0, 1)")

    def check_order(self, **arguments):
        """Raises the `ValueError` of the first argument above the next one, both finite."""
        pairs = list(arguments.items())
        for (name, value), (later, bound) in zip(pairs, pairs[1:]):
            self.check_argument(name, value, value <= bound, f"at most {later}={bound}")

    def add_state(self, name, value):
        """Returns a new variable that starts as the array `value`, is no weight, and is saved."""
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

    # Data: resident on the device, drawn by index.

    def attach(self, task):
        """Puts the images and given labels of `task` on the device, once, before `fit`.

        Raises:
            UserError: If there is a task already: the compiled step holds its images. Or if
                the network does not turn its images into one logit for each class.
        """
        if self.task is not None:
            raise UserError("This learner has a task. Make a new learner for another one.")
        contract.check(self.network, task.image_shape, task.num_classes)
        examples = self.example_states(task)
        if self.record_examples:
            rows = record.initial(task.num_examples, task.num_classes)
            examples = {**examples, "record_rows": rows}
        for name, value in examples.items():
            loaded = self.loaded_states.get(name, value)
            if loaded.shape != value.shape:
                raise UserError(
                    f"This {type(self).__name__} was saved with another task: its `{name}` has the "
                    f"shape {loaded.shape}. Attach that task. Received: one of {value.shape}"
                )
        self.task = task
        for name, value in examples.items():
            setattr(self, name, self.add_state(name, self.loaded_states.pop(name, value)))
        self.resident = ResidentData(task.images, task.given_labels)
        if self.weak_augmentation == "auto":
            self.weak_kind = "flip_shift" if task.flip else "shift"
        else:
            self.weak_kind = self.weak_augmentation

    def example_states(self, task):
        """Returns the state of each example that a method keeps on the device.

        Args:
            task: The `Task` that is attached.

        Returns:
            A dict from name to the array of shape `(num_examples, ...)` that it starts as. A
            learner has a variable of that name then, saved and checkpointed.
        """
        return {}

    def streams(self):
        """Returns a dict from stream name (`labeled`, `unlabeled`) to its indices a step."""
        return {"labeled": self.batch_size}

    def images_per_step(self):
        """Returns how many images a step passes through a network and back: what it costs."""
        return sum(self.streams().values())

    def pools(self):
        """Returns a dict from stream name to the positions that it draws from."""
        return {"labeled": self.task.labeled}

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
        pools = self.pools()
        for name, pool in pools.items():
            if len(pool) == 0:
                raise UserError(
                    f"{type(self).__name__} draws {name} examples, and the task has none. Label "
                    f"fewer of them (--num_labels). Received: {len(self.task.labeled)} of "
                    f"{self.task.num_examples} labeled"
                )
        return IndexBatches(pools, self.streams(), seed, true_labels=true_labels, start=start)

    def images(self, indices):
        """Takes images as float32 pixels `(batch_size, height, width, channels)` in [0, 255]."""
        return ops.cast(ops.take(self.resident.images, indices, axis=0), "float32")

    def given_labels(self, indices):
        """Takes given labels, int32 `(batch_size,)`."""
        return ops.take(self.resident.given_labels, indices, axis=0)

    def weak_view(self, images, indices, stream="labeled"):
        """Returns a weak view of `images`, those of `indices`, as `weak_augmentation` says."""
        if self.weak_kind == "none":
            return images
        if self.weak_kind == "alternating_flip_shift":
            # How often the stream has passed through its pool, for each place of the batch.
            size, length = self.streams()[stream], len(self.pools()[stream])
            place = ops.arange(indices.shape[0], dtype="int32")
            epoch = (self.step * size + place) // length
            images = augment.alternating_flip(images, indices, epoch)
        if self.weak_kind == "jitter":
            images = augment.color_jitter(images, self.seed_generator)
        return augment.weak_view(images, self.seed_generator, **self.weak_geometry())

    def weak_geometry(self):
        """Returns whether weak views are flipped and how far they are shifted, for `augment`."""
        kind = self.weak_kind
        jitter_shift = self.task.image_shape[0] // 16
        return {
            "flip": kind == "flip_shift" or (kind == "jitter" and self.task.flip),
            "max_shift": {"none": 0, "jitter": jitter_shift}.get(kind),
        }

    def weak_logits(self, indices):
        """Returns the logits of weak views of `indices`, in training mode, and observes them."""
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

    def progress(self):
        """Returns the share of the training that is done, a float32 scalar in [0, 1]."""
        return ops.minimum(ops.cast(self.step.value, "float32") / self.steps, 1.0)

    def averaged_logits(self, images, training=True):
        """Returns the logits of the network with averaged weights, as a teacher's.

        No gradient flows through them. Batch norm normalizes by the batch if `training`, else by
        running statistics, which stay; dropout draws noise of its own.
        """
        average = {id(v): a for v, a in zip(self.averaged_variables, self.averages)}
        trainable, others = (
            [average.get(id(v), v).value for v in variables]
            for variables in (
                self.network.trainable_variables,
                self.network.non_trainable_variables,
            )
        )
        logits, others = self.network.stateless_call(trainable, others, images, training=training)
        for variable, value in zip(self.network.non_trainable_variables, others):
            if is_random_state(variable):
                variable.assign(value)
        return ops.stop_gradient(logits)

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
            return self.network(inputs, training=training)
        # Keras feeds batches of unknown size on TensorFlow; the step needs static shapes.
        indices = {n: ops.reshape(inputs[n], (size,)) for n, size in self.streams().items()}
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

    def decayed_variables(self):
        """Returns the variables that `weight_decay` draws to zero, as `decayed` says."""
        variables = self.network.trainable_variables
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
        if not isinstance(x, dict) or not set(self.streams()) <= set(x):
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

    def after_update(self):
        """Updates what follows the weights: here their moving average."""
        momentum = self.average_momentum()
        for average, variable in zip(self.averages, self.averaged_variables):
            rate = ops.cast(1 - momentum, average.dtype)
            average.assign(average + rate * (variable - average))

    def average_momentum(self):
        """Returns the share of the average that the step just done keeps: a number or scalar."""
        if not self.ema_warmup:
            return self.ema_momentum
        return schedules.warmed_up(self.ema_momentum, self.step.value)

    @property
    def running_statistics(self):
        """The running means and variances of the network's batch norm."""
        return [v for v in self.network.non_trainable_variables if "moving_" in v.name]

    @contextlib.contextmanager
    def kept_statistics(self):
        """Within this context batch norm normalizes by the batch, and keeps its running statistics.

        For a forward pass whose images are unlike those that the network will see.
        """
        variables = self.network.non_trainable_variables
        counts = [v for v in variables if v.name == "num_updates"]
        before = [(v, ops.copy(v.value)) for v in (*self.running_statistics, *counts)]
        try:
            yield
        finally:
            for variable, value in before:
                variable.assign(value)

    @contextlib.contextmanager
    def averaged_weights(self):
        """Within this context the network holds the moving average of its weights.

        Batch norm keeps the live statistics, as the FixMatch code does, unless
        `average_statistics`. The weights come back at the end, whatever happens
        in between. Train outside of it.
        """
        # With the moving average off, `averages` is empty and nothing is swapped.
        swapped = list(zip(self.averaged_variables, self.averages))
        live = [ops.copy(variable.value) for variable, _ in swapped]
        for variable, average in swapped:
            # A copy: on JAX, Keras hands the buffers of a variable over to XLA.
            variable.assign(ops.copy(average.value))
        try:
            yield self
        finally:
            for (variable, _), value in zip(swapped, live):
                variable.assign(value)

    def get_config(self):
        return {
            "network": keras.saving.serialize_keras_object(self.network),
            "name": self.name,
            **{name: getattr(self, name) for name in constructor_arguments(type(self))},
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


def is_random_state(variable):
    """Whether a variable is the state of a `keras.random.SeedGenerator`."""
    return "seed_generator_state" in variable.name


def constructor_arguments(cls):
    """Returns the keyword-only constructor arguments of a method, its own before the base's.

    Args:
        cls: A `Learner` class whose constructors pass `**kwargs` on to their base.

    Returns:
        A dict from name to `inspect.Parameter`, the most derived default winning.
    """
    arguments = {}
    for base in cls.__mro__:
        if "__init__" in vars(base) and issubclass(base, Learner):
            for parameter in inspect.signature(base.__init__).parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "name":
                    arguments.setdefault(parameter.name, parameter)
    return arguments


class ResidentData(keras.layers.Layer):
    """The images and given labels on the device. They are never saved."""

    def __init__(self, images, given_labels):
        super().__init__(trainable=False)
        self.images = keras.Variable(images, dtype="uint8", trainable=False, autocast=False)
        self.given_labels = keras.Variable(given_labels, dtype="int32", trainable=False)
        self.built = True

    def save_own_variables(self, store):
        del store

    def load_own_variables(self, store):
        del store
