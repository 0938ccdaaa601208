# SPDX-License-Identifier: Apache-2.0
"""CTAugment: strong views with the magnitudes that the network can still read.

Every magnitude is divided into bins, and every bin has a rate: how close the network came to the
right label on probe images that used the bin. Probes are labeled examples. Strong views draw only
from bins with a rate close to the best one. The caller keeps the rates, a float32 tensor:
`initial_rates` makes it, `strong_view` draws from it, `probe` and `updated_rates` update it once
per step.

Images and operations are as in `augment.operations`, with Pillow's numbers. `operations` lists the
19 operations and `BINS` their magnitudes.

Reference:
    [Berthelot et al., 2020](https://arxiv.org/abs/1911.09785), section 3.2, and
    google-research/fixmatch, the source of ranges and constants.
"""

import functools

import keras
import numpy as np
from keras import ops

from ssl_noisy import augment
from ssl_noisy.augment.slots import Slots, slots_per_operation

DEPTH = 2
DECAY = 0.99
THRESHOLD = 0.80
FILTERS = ("lanczos", "bicubic", "bilinear", "box", "hamming", "nearest")
# From operation to the number of bins of each of its magnitudes ("knobs").
BINS = {
    **dict.fromkeys(("autocontrast", "blur", "brightness", "color", "contrast"), (17,)),
    **dict.fromkeys(("cutout", "equalize", "invert"), (17,)),
    "identity": (),
    "posterize": (8,),
    "rescale": (17, len(FILTERS)),
    **dict.fromkeys(("rotate", "sharpness", "shear_x", "shear_y", "smooth"), (17,)),
    **dict.fromkeys(("solarize", "translate_x", "translate_y"), (17,)),
}
# One row of the rates for each knob, in the order of `BINS`.
_COUNTS = np.array([count for counts in BINS.values() for count in counts], "float32")
_WIDTH = int(_COUNTS.max())
_EXISTS = np.arange(_WIDTH) < _COUNTS[:, None]
_ENDS = np.cumsum([len(counts) for counts in BINS.values()])
_ROWS = {
    name: list(range(end - len(counts), end))
    for (name, counts), end in zip(BINS.items(), _ENDS.tolist(), strict=True)
}
_SLOTS_PER_OPERATION = max(len(counts) for counts in BINS.values())


def initial_rates():
    """Returns the initial rates: 1 for every bin.

    Returns:
        A float32 NumPy array of shape `(knobs, 17)`: `(19, 17)`. Rows with
        fewer bins are padded with 0.
    """
    return _EXISTS.astype("float32")


def probabilities(rates):
    """Returns the probability of each bin: proportional to its rate, and 0 far below the best.

    Args:
        rates: Tensor of shape `(knobs, 17)`.

    Returns:
        A float32 tensor of the same shape; each row sums to 1.
    """
    # The summand keeps every row from having no bin at all.
    raised = ops.where(_EXISTS, ops.cast(rates, "float32") + (1 - DECAY), 0.0)
    share = raised / ops.max(raised, axis=-1, keepdims=True)
    share = ops.where(share < THRESHOLD, 0.0, share)
    return share / ops.sum(share, axis=-1, keepdims=True)


def strong_view(
    images, seed, rates, *, flip=True, max_shift=None, crop_area=None, pixel_translation=False
):
    """Makes a strong view: weak view, 2 operations drawn by `rates`, cutout, in this order.

    The operations of an image are uniform and independent. In a batch each occurs about equally
    often, see `slots.Slots`. The side of the last gray square is half the shorter image side.

    Args:
        images, seed, flip, max_shift, crop_area: As in `augment.weak_view`.
        rates: Tensor of shape `(knobs, 17)`.
        pixel_translation: As in `operations`.

    Returns:
        A float32 tensor of the shape of `images`.
    """
    images = augment.weak_view(images, seed, flip=flip, max_shift=max_shift, crop_area=crop_area)
    images, _ = _augmented(images, seed, rates, pixel_translation)
    return augment.cutout(images, seed, size=_even_size(min(images.shape[1:3])))


def probe(images, seed, *, pixel_translation=False):
    """Applies 2 operations to each image, with magnitudes uniform over the whole range.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255:
            weak views of labeled images.
        seed: A `keras.random.SeedGenerator`; its state advances.
        pixel_translation: As in `operations`.

    Returns:
        The probe images, a float32 tensor of the same shape, and the bins that
        each used: int32 positions in the flattened rates, -1 for none, of
        shape `(batch, 2, 2)`: for each operation its first and second knob.
    """
    return _augmented(ops.cast(images, "float32"), seed, None, pixel_translation)


def proximity(given_labels, probs):
    """Computes how close predictions are to labels: 1 less half the L1 distance.

    Args:
        given_labels: Integer tensor of shape `(batch,)`.
        probs: Float tensor of shape `(batch, num_classes)` whose rows sum to 1.

    Returns:
        A float32 tensor of shape `(batch,)`: the probability of each label.
    """
    one_hot = ops.one_hot(given_labels, probs.shape[-1])
    return 1 - 0.5 * ops.sum(ops.abs(ops.cast(probs, "float32") - one_hot), axis=-1)


def updated_rates(rates, bins, proximity):
    """Moves the rates of the bins that probes used toward the probes' proximity.

    A bin used n times moves toward the mean proximity with weight 1 - 0.99**n. The authors' code
    moves it n times by 0.01, one probe after another: for n = 1 the same, for larger n the same
    total weight, but there later probes count more.

    Args:
        rates: Tensor of shape `(knobs, 17)`.
        bins: The int32 tensor that `probe` returned.
        proximity: Tensor of shape `(batch,)`, as from `proximity`.

    Returns:
        A float32 tensor of the shape of `rates`.
    """
    rates = ops.cast(rates, "float32")
    places = np.arange(_COUNTS.size * _WIDTH, dtype="int32")
    hits = ops.cast(ops.reshape(bins, (bins.shape[0], -1, 1)) == places, "float32")
    hits = ops.sum(hits, axis=1)
    count = ops.reshape(ops.sum(hits, axis=0), rates.shape)
    total = ops.sum(hits * ops.cast(proximity, "float32")[:, None], axis=0)
    mean = ops.reshape(total, rates.shape) / ops.maximum(count, 1)
    keep = ops.power(DECAY, count)
    return keep * rates + (1 - keep) * mean


def operations(seed, *, pixel_translation=False):
    """Returns the operations: from name to a function of images and values.

    The images are float32, of shape `(batch, height, width, channels)`; then
    follow as many values in [0, 1] as `BINS` has numbers, each `(batch,)`.
    Pixels that a warp takes from outside the image are black.

    Args:
        seed: A `keras.random.SeedGenerator` for the place of the cutout.
        pixel_translation: Whether translations are at most 0.3 pixels, as in the authors' code,
            where they therefore have no effect, instead of 0.3 of the image side.

    Returns:
        A dictionary with the keys of `BINS`, in their order.
    """

    def blended(change):
        return lambda images, value: augment.blend(images, change(images), value)

    def enhanced(change):
        return lambda images, value: change(images, 0.1 + 1.9 * value)

    def shift(value, side):
        return (2 * value - 1) * (0.3 if pixel_translation else 0.3 * side)

    def square(images, value):
        size = _even_size(value * min(images.shape[1:3]))
        return augment.cutout(images, seed, size=(size, size))

    return {
        "autocontrast": blended(augment.autocontrast),
        "blur": blended(blur),
        "brightness": enhanced(augment.brightness),
        "color": enhanced(augment.color),
        "contrast": enhanced(augment.contrast),
        "cutout": square,
        "equalize": blended(augment.equalize),
        "invert": blended(augment.invert),
        "identity": lambda images: images,
        "posterize": lambda images, u: augment.posterize(images, 1 + ops.floor(7.999 * u)),
        "rescale": lambda images, u, v: rescale(images, 0.25 * u, ops.floor(5.99 * v)),
        "rotate": lambda images, u: augment.rotate(images, ops.round((2 * u - 1) * 45), fill=0),
        "sharpness": enhanced(augment.sharpness),
        "shear_x": lambda images, u: augment.shear_x(images, (2 * u - 1) * 0.3, fill=0),
        "shear_y": lambda images, u: augment.shear_y(images, (2 * u - 1) * 0.3, fill=0),
        "smooth": blended(lambda images: augment.sharpness(images, np.float32(0))),
        "solarize": lambda images, u: augment.solarize(images, ops.floor(255.999 * u)),
        "translate_x": lambda x, u: augment.translate_x(x, shift(u, x.shape[2]), fill=0),
        "translate_y": lambda x, u: augment.translate_y(x, shift(u, x.shape[1]), fill=0),
    }


def blur(images):
    """Computes PIL's BLUR filter: the mean of the 16 pixels around the 5x5 square.

    The border of two pixels does not change.
    """
    images = ops.cast(images, "float32")
    _, height, width, _ = images.shape

    def box(first, last):
        rows = sum(images[:, i : height - 4 + i] for i in range(first, last))
        return sum(rows[:, :, i : width - 4 + i] for i in range(first, last))

    ring = ops.floor((box(0, 5) - box(1, 4)) / 16 + 0.5)
    change = ring - images[:, 2:-2, 2:-2]
    return images + ops.pad(change, ((0, 0), (2, 2), (2, 2), (0, 0)))


def rescale(images, share, method):
    """Crops a fraction of each side and enlarges the rest to the full size.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        share: Tensor of shape `(batch,)`, 0 to 0.25. The cut is rounded to
            whole pixels.
        method: Tensor of shape `(batch,)`, place of the filter in `FILTERS`.

    Returns:
        A float32 tensor of the same shape.
    """
    images = ops.cast(images, "float32")
    method = ops.cast(method, "int32")
    for side in (images.shape[2], images.shape[1]):
        images = ops.transpose(images, (0, 2, 1, 3))
        batch, _, other, channels = images.shape
        first, last = ops.round(share * side), ops.round((1 - share) * side)
        cut = ops.cast(side - (last - first), "int32")
        weights, taps = _pillow_weights(side)
        weights = ops.take(weights, len(FILTERS) * cut + method, axis=0)
        taps = ops.take(taps, cut, axis=0) + first[:, None, None]
        hits = taps[..., None] == np.arange(side, dtype="float32")
        weights = ops.sum(ops.where(hits, weights[..., None], 0.0), axis=2)
        # A GPU may multiply with only 11 binary places. Halves of the weights have no more, so
        # the sums are exact whole numbers.
        upper = ops.floor(weights / 4096 + 0.5)
        halves = ops.concatenate([upper, weights - 4096 * upper], axis=1)
        sums = ops.matmul(halves, ops.reshape(images, (batch, side, other * channels)))
        sums = ops.cast(sums, "int32")
        total = ops.right_shift(4096 * sums[:, :side] + sums[:, side:] + 2**21, 22)
        lines = ops.cast(ops.clip(total, 0, 255), "float32")
        images = ops.reshape(lines, (batch, side, other, channels))
    return images


@functools.cache
def _pillow_weights(side):
    """Computes how Pillow enlarges a line of `side` less `cut` pixels to `side`.

    Returns:
        The weights times 2**22, whole numbers, float32 of shape `(cuts * filters, side, 7)`,
        and the 7 pixels that have them, `(cuts, side, 7)`, some outside the line.
    """
    size = side - np.arange(side // 2 + 2)[:, None]
    scale = size / side
    center = ((np.arange(side) + 0.5) * scale)[..., None]
    pixels = np.floor(center) + np.arange(-3, 4)
    x = pixels + 0.5 - center
    near = np.abs(x)
    inner = (1.5 * near - 2.5) * near * near + 1
    outer = (((near - 5) * near + 8) * near - 4) * -0.5
    # Pillow adds up the places of the nearest pixels, which rounds at whole numbers.
    nearest = np.cumsum(np.where(np.arange(side) == 0, scale / 2, scale), axis=1)[..., None]
    kernels = {
        "lanczos": (3, np.sinc(x) * np.sinc(x / 3)),
        "bicubic": (2, np.where(near < 1, inner, outer)),
        "bilinear": (1, 1 - near),
        "box": (0.5, np.ones_like(x)),
        "hamming": (1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x))),
        "nearest": (3, pixels == np.floor(nearest)),
    }
    tables = []
    for reach, weights in (kernels[name] for name in FILTERS):
        within = (pixels >= np.floor(center - reach + 0.5)) & (pixels >= 0)
        within &= (pixels < np.floor(center + reach + 0.5)) & (pixels < size[..., None])
        weights = np.where(within, weights, 0.0)
        weights = weights / weights.sum(axis=-1, keepdims=True) * 2**22
        tables.append(np.trunc(weights + np.copysign(0.5, weights)))
    tables = np.stack(tables, axis=1).reshape(-1, side, 7)
    return tables.astype("float32"), pixels.astype("float32")


def _augmented(images, seed, rates, pixel_translation):
    """Applies `DEPTH` operations to each image; also returns the bins, as `probe`.

    With `rates=None` magnitudes are uniform.
    """
    size = slots_per_operation(images.shape[0], len(BINS))
    order = keras.random.uniform((DEPTH, len(BINS) * size), dtype="float32", seed=seed)
    slots = Slots(order, images.shape[0], size)
    shape = (2, DEPTH, _COUNTS.size, size)
    uniform = keras.random.uniform(shape, dtype="float32", seed=seed)
    values, bins = _magnitudes(uniform, rates)
    bins_of_image = []
    for draw in range(DEPTH):
        dealt, results = slots.deal(images, draw), []
        named = operations(seed, pixel_translation=pixel_translation)
        for place, (name, operation) in enumerate(named.items()):
            group = dealt[slots.of_operation(place)]
            results.append(operation(group, *(values[draw, row] for row in _ROWS[name])))
        images = slots.collect(ops.concatenate(results), draw)
        bins_of_image.append(slots.collect(_bins_of_slots(bins[draw]), draw))
    return images, ops.stack(bins_of_image, axis=1)


def _magnitudes(uniform, rates):
    """Draws values in [0, 1) and their bins, both `(draws, knobs, slots)`."""
    counts = _COUNTS[:, None]
    if rates is None:
        # As in the authors' code; the factor also keeps rounding within the range.
        return uniform[1], ops.floor(0.999 * counts * uniform[1])
    # Sums of whole numbers are exact in any order: no bin of probability 0 is drawn.
    ends = ops.cumsum(ops.floor(2.0**20 * probabilities(rates)), axis=-1)[:, None]
    place = uniform[0][..., None] * ends[..., -1:]
    bins = ops.sum(ops.cast(ends <= place, "float32"), axis=-1)
    return (bins + uniform[1]) / counts, bins


def _bins_of_slots(bins):
    """Turns bins, `(knobs, slots of one operation)`, into positions, `(slots, 2)`."""
    positions = ops.cast(bins, "int32") + _WIDTH * np.arange(_COUNTS.size, dtype="int32")[:, None]
    positions = ops.pad(positions, ((0, 1), (0, 0)), constant_values=-1)
    none = [_COUNTS.size] * _SLOTS_PER_OPERATION
    rows = np.array([(*rows, *none)[:_SLOTS_PER_OPERATION] for rows in _ROWS.values()], "int32")
    positions = ops.transpose(ops.take(positions, rows, axis=0), (0, 2, 1))
    return ops.reshape(positions, (-1, _SLOTS_PER_OPERATION))


def _even_size(side):
    """Returns the side of the cutout square, about half of `side`.

    The authors' code extends it by equally many pixels to both sides of the center.
    """
    size = 1 + ops.floor(0.499 * side)
    return 2 * ops.floor(size / 2)
