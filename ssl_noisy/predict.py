# SPDX-License-Identifier: Apache-2.0
"""Predicts the classes of pictures: python -m ssl_noisy.predict --run_dir=RUN --images=FOLDER

Writes --output=FILE.csv with a row per picture: file, predicted_class,
confidence, second_class, second_confidence. --images is a folder, which is
searched with its subfolders, or a file; more files may follow the flags.

With --export, it writes the model of the run in another format instead:

  python -m ssl_noisy.predict --run_dir=RUN --export=onnx --output=model.onnx
"""

import collections
import concurrent.futures
import csv
import dataclasses
import os
import pathlib
import sys
import time
import typing

import keras
import numpy as np
from absl import flags

from ssl_noisy import command, files, model_file
from ssl_noisy.data import decoded, picture_files, pictures
from ssl_noisy.data.picture_files import SUFFIXES
from ssl_noisy.errors import UserError, one_line
from ssl_noisy.runs import folder
from ssl_noisy.settings import absolute_path

COLUMNS = ("file", "predicted_class", "confidence", "second_class", "second_confidence")


class Export(typing.NamedTuple):
    """A format: its name in Keras, and how the names of its files end."""

    name: str
    suffix: str


EXPORTS = {
    "saved_model": Export("tf_saved_model", ""),  # a folder
    "tflite": Export("litert", ".tflite"),
    "onnx": Export("onnx", ".onnx"),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user wants.

    Attributes:
        model: Path of a `.keras` file.
        images: Paths of folders and files, as the user writes them.
        output: Path to write.
        batch_size: Positive integer.
        export: A key of `EXPORTS`, or None.
        input_size: `(height, width)` of the exported model, or None for the network's.
        logits: Whether the exported model returns logits instead of probabilities.
    """

    model: str
    images: tuple[str, ...]
    output: str
    batch_size: int = 64
    export: str | None = None
    input_size: tuple[int, int] | None = None
    logits: bool = False


def define_flags(values):
    """Defines the flags of this command and returns their names."""
    define = {"flag_values": values}
    flags.DEFINE_string("run_dir", None, "Folder of a finished run.", **define)
    flags.DEFINE_string("model", None, "A .keras file, instead of --run_dir.", **define)
    flags.DEFINE_multi_string("images", [], "Folder or file; may be repeated.", **define)
    flags.DEFINE_string("output", None, "File to write. Unset: predictions.csv.", **define)
    flags.DEFINE_integer("batch_size", 64, "Pictures at a time.", lower_bound=1, **define)
    flags.DEFINE_enum(
        "export", None, list(EXPORTS), "Write the model in this format instead.", **define
    )
    flags.DEFINE_string(
        "input_size",
        None,
        "With --export: size of the images that the model takes and resizes, 96 or HEIGHTxWIDTH. "
        "Unset: as in training.",
        **define,
    )
    flags.DEFINE_boolean("logits", False, "With --export: return logits.", **define)
    names = ["run_dir", "model", "images", "output", "batch_size", "export", "input_size", "logits"]
    return names


def read_flags(argv, values):
    """Returns the `Request` of a command line.

    Raises:
        absl.flags.Error, UserError: If it is wrong.
    """
    command.check_flagfiles(argv[1:])
    more = values(argv)[1:]
    if (values["run_dir"].value is None) == (values["model"].value is None):
        raise UserError("Pass --run_dir=RUN of a finished run, or --model=FILE.keras.")
    images, export = [*values["images"].value, *more], values["export"].value
    if export is None:
        if not images:
            raise UserError("Pass the pictures to predict: --images=FOLDER, or files.")
        for name in ("input_size", "logits"):
            if values[name].present:
                raise UserError(f"--{name} has no effect without --export. Leave it out.")
    elif images or not values["output"].value:
        raise UserError(
            "--export writes a model: pass --output=PATH and no pictures. Received: "
            f"--output={values['output'].value} and {len(images)} pictures or folders"
        )
    run_dir = values["run_dir"].value
    model = os.path.join(run_dir, folder.MODEL) if run_dir else values["model"].value
    size = values["input_size"].value
    return Request(
        absolute_path(model),
        tuple(images),
        absolute_path(values["output"].value or "predictions.csv"),
        values["batch_size"].value,
        export,
        size and pictures.parse_size(size, "--input_size"),
        values["logits"].value,
    )


def main(request):
    if request.export:
        export(request)
        print(f"{request.output}: {request.export}")
        return
    listed = find(request.images)
    network, metadata = model_file.read(request.model)
    unreadable, began = {}, time.monotonic()
    with files.replacing(request.output, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        predictions = predict(network, metadata, listed, request.batch_size)
        for done, (path, row) in enumerate(predictions, 1):
            writer.writerow([path.name, *row] if isinstance(row, list) else [path.name, *[""] * 4])
            if not isinstance(row, list):
                unreadable[path.name] = row
            _show(done, len(listed), began)
        if len(unreadable) == len(listed):
            name, reason = next(iter(unreadable.items()))
            raise UserError(
                f"None of {len(listed)} pictures can be read, such as {name} ({reason}). Check "
                "--images."
            )
    for name, reason in unreadable.items():
        print(f"Cannot read {name}: {reason}", file=sys.stderr)
    print(
        f"{request.output}: {len(listed) - len(unreadable)} pictures, {len(unreadable)} unreadable"
    )


def _show(done, total, began):
    """Updates a line about the progress, on a terminal."""
    if sys.stdout.isatty() and (done % 256 == 0 or done == total):
        rate = done / (time.monotonic() - began)
        end = "\n" if done == total else ""
        print(f"\r\x1b[2K{done:,} of {total:,} pictures, {rate:.0f} a second", end=end, flush=True)


def find(places):
    """Returns the pictures in folders, and files, as a list of `decoded.File`.

    Raises:
        UserError: If a place does not exist, or there is no picture.
    """
    found = []
    for place in places:
        path = pathlib.Path(absolute_path(place))
        if path.is_dir():
            inside = filter(picture_files.is_picture, picture_files.walk(path))
            found += [(os.path.join(place, name), path / name) for name in inside]
        elif path.exists():
            found.append((place, path))
        else:
            raise UserError(f"There is no file or folder {place!r}. Check --images.")
    if not found:
        raise UserError(
            f"No picture in {', '.join(map(repr, places))}. Pictures end in {', '.join(SUFFIXES)}."
        )
    return [decoded.File(name, str(path)) for name, path in found]


def predict(network, metadata, listed, batch_size):
    """Yields the prediction of each picture, in order, with a few batches in memory.

    Args:
        network: A `keras.Model` from pixels to logits.
        metadata: Its `model_file.Metadata`.
        listed: Sequence of `decoded.File`.
        batch_size: Positive integer.

    Yields:
        `(file, row)`: the row is a list of the two likeliest classes, each followed by its
        probability, or the reason why the picture cannot be read, a string.
    """
    form = model_file.format_of(network, metadata)
    model = model_file.deployed(network, metadata)
    names = metadata.class_names
    batches = [listed[start : start + batch_size] for start in range(0, len(listed), batch_size)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # The next batches are decoded while the network sees this one.
        waiting = collections.deque()
        for batch in batches + [None, None]:
            if batch is not None:
                waiting.append((batch, [pool.submit(_pixels, form, file) for file in batch]))
            if len(waiting) > 2 or (batch is None and waiting):
                batch, futures = waiting.popleft()
                yield from zip(batch, _rows(model, names, futures, form, batch_size))


def _rows(model, names, futures, form, batch_size):
    decoded_ones = [future.result() for future in futures]
    # Of one size, because another one would be compiled anew.
    pixels = np.zeros((batch_size, form.height, form.width, form.channels), np.uint8)
    for row, one in enumerate(decoded_ones):
        if not isinstance(one, str):
            pixels[row] = one
    probs = np.asarray(model.predict_on_batch(pixels))[: len(futures)]
    best = np.argsort(-probs, axis=-1, kind="stable")[:, :2]
    for one, classes, values in zip(decoded_ones, best, probs):
        if isinstance(one, str):
            yield one
        else:
            yield [cell for c in classes for cell in (names[c], round(float(values[c]), 6))]


def _pixels(form, file):
    try:
        return form.pixels(file.read())
    except Exception as error:  # Pillow raises a dozen types on damaged files
        return getattr(error, "strerror", None) or one_line(error)


def export(request):
    """Writes the model in another format, through Keras's own `Model.export`."""
    network, metadata = model_file.read(request.model)
    model = model_file.deployed(
        network, metadata, probabilities=not request.logits, input_size=request.input_size
    )
    target = pathlib.Path(request.output)
    if target.exists():
        raise UserError(f"{request.output!r} exists. Remove it, or choose another --output.")
    suffix = EXPORTS[request.export].suffix
    if suffix and target.suffix != suffix:
        raise UserError(
            f"--output must end in {suffix} with --export={request.export}. Received: "
            f"--output={request.output}"
        )
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            "--export must run on TensorFlow, which reads model.keras of any backend. Received: "
            f"{keras.backend.backend()}. Run it with KERAS_BACKEND=tensorflow."
        )
    files.make_folder(target.parent)
    model(np.zeros((1, *model.input_shape[1:]), "float32"))  # ONNX requires one call
    try:
        model.export(request.output, format=EXPORTS[request.export].name, verbose=False)
    except ImportError as error:
        raise UserError(
            f"--export={request.export} needs another package: {one_line(error)}. Install it: pip "
            "install 'ssl_noisy[onnx]'."
        ) from error


if __name__ == "__main__":
    command.start("ssl_noisy.predict", main, define_flags=define_flags, read_flags=read_flags)
