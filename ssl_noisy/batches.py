# SPDX-License-Identifier: Apache-2.0
"""Batches of example indices, a pure function of the seed and the step."""

import bisect
import dataclasses
import functools

import keras
import numpy as np

from ssl_noisy import devices
from ssl_noisy.errors import UserError


def image_key(stream):
    """Returns the key of a stream's images in a batch.

    Keras weights a batch, in its running loss, by the size of the first array in the order of the
    keys. That is the same stream with and without these keys.
    """
    return f"{stream}_images"


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps whose batches have one size.

    Attributes:
        first_step: Integer, the step with which it begins. It ends where the next one begins.
        sizes: Dict from stream name to batch size.
        drawn: Dict from stream name to the number of examples drawn before.
    """

    first_step: int
    sizes: dict
    drawn: dict

    def drawn_at(self, step, name):
        """Returns how many examples of a stream are drawn before `step`, one of this stage."""
        return self.drawn[name] + (step - self.first_step) * self.sizes[name]


@dataclasses.dataclass(frozen=True)
class Partners:
    """A stream that has a partner of each example of another stream, drawn from a table.

    Attributes:
        stream: Name of the other stream.
        table: Integer array of shape `(num_examples, num_choices)`. The partner of an example is
            one of its row, with equal probability.
    """

    stream: str
    table: np.ndarray

    def of(self, positions, seed):
        """Draws the partners of `positions`, int32 of the same shape, by a seed of integers."""
        size, num_choices = len(positions), self.table.shape[1]
        columns = np.random.default_rng(seed).integers(num_choices, size=size)
        return np.asarray(self.table[positions, columns], np.int32)


def in_stages(sizes):
    """Returns the list of `Stage`s of batches that change their size.

    Args:
        sizes: Dict from the first step of each stage, 0 and ascending, to its dict of sizes.
    """
    made = []
    for step, of_stage in sizes.items():
        drawn = {name: made[-1].drawn_at(step, name) if made else 0 for name in of_stage}
        made.append(Stage(step, dict(of_stage), drawn))
    return made


def stage_of(step, among):
    """Returns the one of a list of `Stage`s to which a step belongs."""
    return among[bisect.bisect([stage.first_step for stage in among], step) - 1]


class EnterStages(keras.callbacks.Callback):
    """Tells the learner of each `Stage` of its batches, before the first step of it."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches
        self.done = batches.start

    def on_train_batch_begin(self, batch, logs=None):
        stage = stage_of(self.done, self.batches.stages)
        if stage != self.model.stage:
            self.model.enter(stage)
        self.done += 1


class IndexBatches(keras.utils.PyDataset):
    """An endless Keras data set whose batches are positions in a `Task`.

    Each stream goes through its pool again and again, every pass in a new
    random order, so that an example comes up once per pass: a batch may span
    the end of one pass and the start of the next. The batch of a step depends
    on `(seed, stream, step)` alone, never on what was drawn before, so
    a stopped run resumes exactly.

    If several processes train together (see `devices`), each gets its part of a batch.

    `Learner.fit` trains on it. It never ends, so `fit` needs `steps_per_epoch`, and it is already
    shuffled. Each call of `fit` begins with the batch of step `start`: to continue training,
    set `start` to the number of steps done.

    (The TF1 code of FixMatch draws from a shuffle buffer of 8192 instead:
    passes for a large pool, nearly independent draws for a few dozen labels.)

    Args:
        pools: Dict from stream name to an integer array of positions.
        sizes: Dict from stream name to the batch size of each stream, or a list of `Stage`s.
        seed: Integer.
        true_labels: Optional integer array of shape `(num_examples,)`, -1
            where unknown. It becomes the batch's `y`, which only metrics see.
        start: The step of the first batch.
        images: Optional uint8 array of shape `(num_examples, height, width, channels)`, which may
            be memory-mapped. Each batch then has those of its positions too, under `image_key`.
        partners: Optional dict from stream name to `Partners`, for streams without a pool.

    Raises:
        ValueError: If a pool is empty, a size is not positive, or a stream of partners has another
            size than the stream that they belong to.
    """

    def __init__(
        self, pools, sizes, seed=0, *, true_labels=None, start=0, images=None, partners=None
    ):
        super().__init__()
        self.stages = in_stages({0: sizes}) if isinstance(sizes, dict) else list(sizes)
        self.partners = partners or {}
        for name, partner in self.partners.items():
            for stage in self.stages:
                if stage.sizes[name] != stage.sizes[partner.stream]:
                    raise UserError(
                        f"The batch size of {name!r} must be that of {partner.stream!r}, "
                        f"{stage.sizes[partner.stream]}. Received: {stage.sizes[name]}"
                    )
        names = [name for name in self.stages[0].sizes if name not in self.partners]
        for name in names:
            size = min(stage.sizes[name] for stage in self.stages)
            if size < 1:
                raise UserError(f"The batch size of {name!r} must be positive. Received: {size}")
            if len(pools[name]) == 0:
                raise UserError(f"There are no examples to draw for {name!r}.")
        self.pools = {name: np.asarray(pools[name], np.int32) for name in names}
        self.seed = seed
        self.true_labels = true_labels
        self.start = start
        self.images = images
        # Many steps need the same pass of a pool: keep the last two of each stream.
        self._pass = functools.lru_cache(maxsize=2 * len(names))(self._draw_pass)

    num_batches = None  # how a `PyDataset` says that it is endless

    def __getitem__(self, index):
        step = self.start + index
        taken = {name: self._take(stream, name, step) for stream, name in enumerate(self.pools)}
        for stream, (name, partner) in enumerate(self.partners.items(), len(self.pools)):
            taken[name] = partner.of(taken[partner.stream], [self.seed, stream, step])
        drawn = {name: devices.part(rows) for name, rows in taken.items()}
        x = dict(drawn)
        if self.images is not None:
            x |= {image_key(name): self.images[rows] for name, rows in drawn.items()}
        if self.true_labels is None:
            return (x,)
        return x, {name: self.true_labels[positions] for name, positions in drawn.items()}

    def _take(self, stream, name, step):
        stage = stage_of(step, self.stages)
        size, length = stage.sizes[name], len(self.pools[name])
        first = stage.drawn_at(step, name)
        parts, position = [], first
        while position < first + size:
            number, offset = divmod(position, length)
            part = self._pass(stream, name, number)[offset : offset + first + size - position]
            parts.append(part)
            position += len(part)
        return np.concatenate(parts)

    def _draw_pass(self, stream, name, number):
        return np.random.default_rng([self.seed, stream, number]).permutation(self.pools[name])
