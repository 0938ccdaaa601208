# SPDX-License-Identifier: Apache-2.0
"""Hands `examples.csv` over to cleanlab, FiftyOne and Label Studio."""

import json
import os
import urllib.parse
from xml.sax import saxutils

import numpy as np

from ssl_noisy.errors import UserError
from ssl_noisy.files import replacing
from ssl_noisy.labels import detection

ISSUE_TYPE = "training_record"
# What FiftyOne shows of each example besides its label.
ATTRIBUTES = ("label_quality", "is_label_issue", "probability_margin", "aum", "mean_loss")
LOCAL_FILES = "/data/local-files/?d="
CHOICE, IMAGE = "label", "image"


def pred_probs(path, num_classes=None):
    """Returns mean probabilities during training, for cleanlab's functions that take `pred_probs`.

    The file has the mean probability of the given label and, where it differs, of the predicted
    one. These are exact. The other classes share the rest equally. `Recorder.mean_probabilities`
    has them all. An example that was never seen has equal probabilities.

    Args:
        path: Path of `examples.csv`.
        num_classes: Integer. Defaults to the largest label of the file plus one.

    Returns:
        Float64 array `(n, num_classes)` whose rows sum to 1, in the order of the indices.
    """
    examples = detection.read_examples(path)
    given, predicted = examples["given_label"], examples["predicted_label"]
    largest = int(max(given.max(initial=0), predicted.max(initial=0)))
    num_classes = largest + 1 if num_classes is None else num_classes
    if largest >= num_classes:
        raise UserError(
            f"`num_classes` must be above the largest label of {str(path)!r}, {largest}. Received: "
            f"{num_classes}"
        )
    each = np.arange(len(given))
    is_seen = predicted >= 0
    differs = is_seen & (predicted != given)
    of_given = np.where(is_seen, examples["label_probability"], 1 / num_classes)
    of_predicted = np.where(differs, of_given - examples["probability_margin"], 0.0)
    others = np.maximum(num_classes - 1 - differs, 1)
    rest = np.clip(1 - of_given - of_predicted, 0, 1) / others
    probs = np.repeat(rest[:, None], num_classes, axis=1)
    probs[each, given] = of_given
    probs[each[differs], predicted[differs]] = of_predicted[differs]
    return probs / probs.sum(axis=1, keepdims=True)


def datalab(path, data=None):
    """Makes a cleanlab `Datalab` whose issues of type `training_record` are those of the file.

    `lab.get_issues("training_record")` has `is_training_record_issue`, which is `is_label_issue`,
    and `training_record_score`, which is `label_quality`. A label with unknown quality has score 1.
    Look for other types as usual: `lab.find_issues(features=..., issue_types={"outlier": {}})`, or
    `lab.find_issues(pred_probs=export.pred_probs(path), issue_types={"label": {}})` for cleanlab's
    own rule. It needs `pip install 'ssl_noisy[cleanlab]'`.

    Args:
        path: Path of `examples.csv`.
        data: Dict or other data for `Datalab`, in the order of the indices, with a column
            `given_label`. Defaults to the columns of the file.

    Returns:
        A `cleanlab.Datalab`.
    """
    lab_class = _cleanlab()
    examples = detection.read_examples(path)
    data = {name: list(values) for name, values in examples.items()} if data is None else data
    lab = lab_class(data, label_name="given_label", verbosity=0)
    quality = examples["label_quality"]
    scores = np.where(np.isfinite(quality), quality, 1.0)
    found = {"is_issue": examples["is_label_issue"], "scores": scores}
    lab.find_issues(issue_types={ISSUE_TYPE: found})
    return lab


def _cleanlab():
    """Returns cleanlab's `Datalab`, which knows our issue type."""
    try:  # Imported here: it is not a dependency.
        import pandas as pd
        from cleanlab import Datalab
        from cleanlab.datalab.internal import issue_manager_factory
        from cleanlab.datalab.internal.issue_manager import IssueManager
        from cleanlab.datalab.internal.task import Task
    except ImportError as error:
        raise UserError(
            f"`datalab` needs cleanlab. Run pip install 'ssl_noisy[cleanlab]'. Received: {error}"
        ) from error

    class TrainingRecord(IssueManager):
        """Labels that the training contradicts."""

        description = "Labels that the record of the training contradicts."
        issue_name = ISSUE_TYPE
        verbosity_levels = {0: [], 1: [], 2: []}

        def find_issues(self, is_issue, scores, **kwargs):
            columns = {f"is_{self.issue_name}_issue": is_issue, self.issue_score_key: scores}
            self.issues = pd.DataFrame(columns)
            self.summary = self.make_summary(score=float(np.mean(scores)))

    registered = issue_manager_factory.REGISTRY[Task.CLASSIFICATION]
    if ISSUE_TYPE not in registered:  # a second registration prints a warning
        issue_manager_factory.register(TrainingRecord)
    return Datalab


def fiftyone(path, to, *, files=None, class_names=None, folder="."):
    """Writes the `labels.json` of a `FiftyOneImageClassificationDataset`.

    Its images stay where they are: the file has their absolute paths. The label is the given one,
    the confidence its mean probability during training. Attributes have the predicted class and the
    figures of the record.

    Args:
        path: Path of `examples.csv`.
        to: Path of the file to write.
        files: Sequence of `n` strings, the files of the examples, in the order of their indices.
            Defaults to the column `file`.
        class_names: Sequence of `num_classes` strings. Defaults to the columns `given_class` and
            `predicted_class`, else to numbers.
        folder: Folder in which files with a relative path are.

    Reference:
        The format is described in
        [FiftyOne's guide](https://docs.voxel51.com/user_guide/dataset_creation/datasets.html).
    """
    examples = detection.read_examples(path)
    names, paths = _class_names(examples, class_names), _files(path, examples, files)
    labels = {}
    for place, file in enumerate(paths):
        attributes = {name: _plain(examples[name][place]) for name in ATTRIBUTES}
        attributes = {"predicted_label": _name(names, examples, place), **attributes}
        labels[os.path.abspath(os.path.join(folder, file))] = {
            "label": int(examples["given_label"][place]),
            "confidence": _plain(examples["label_probability"][place]),
            "attributes": {k: v for k, v in attributes.items() if v is not None},
        }
    if len(labels) < len(paths):
        raise UserError(
            f"Each example must have a file of its own. Received: {len(labels)} files of "
            f"{len(paths)} examples"
        )
    _write(to, {"classes": names, "labels": labels})


def label_studio(
    path, to, *, files=None, class_names=None, folder=".", root=None, only_issues=False
):
    """Writes tasks for Label Studio's import, the most suspicious labels first.

    Each task has two predictions: `given_label`, with `label_quality` as its score, and
    `predicted_label`, with its mean probability during training. Sorted by the score of the
    former, the lowest first, Label Studio shows the most suspicious ones first. The labeling
    configuration is `label_studio_config(class_names)`.

    Args:
        path, files, class_names, folder: As for `fiftyone`. Files that are URLs stay.
        to: Path of the file to write.
        root: The folder that Label Studio serves, its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, which
            must contain the files. Defaults to `folder`.
        only_issues: Whether to leave out labels that are no issue.

    Reference:
        [Label Studio: import pre-annotated data](https://labelstud.io/guide/predictions)
    """
    examples = detection.read_examples(path)
    names, paths = _class_names(examples, class_names), _files(path, examples, files)
    order = np.argsort(examples["label_quality"], kind="stable")  # NaN, unknown, comes last
    tasks = []
    for place in order:
        if only_issues and not examples["is_label_issue"][place]:
            continue
        quality = _plain(examples["label_quality"][place])
        given = names[examples["given_label"][place]]
        predicted = _name(names, examples, place)
        predictions = [_prediction("given_label", given, quality)]
        if predicted is not None:
            probability = examples["label_probability"][place]
            probability -= min(examples["probability_margin"][place], 0.0)
            predictions.append(_prediction("predicted_label", predicted, _plain(probability)))
        tasks.append(
            {
                "data": {
                    IMAGE: _url(paths[place], folder, folder if root is None else root),
                    "index": int(examples["index"][place]),
                    "given_label": given,
                    "predicted_label": predicted,
                    "label_quality": quality,
                    "is_label_issue": bool(examples["is_label_issue"][place]),
                },
                "predictions": predictions,
            }
        )
    _write(to, tasks)


def label_studio_config(class_names):
    """Returns the labeling configuration of the tasks of `label_studio`, a string of XML."""
    choices = "".join(f"<Choice value={saxutils.quoteattr(name)}/>" for name in class_names)
    return (
        f'<View><Image name="{IMAGE}" value="${IMAGE}"/>'
        f'<Choices name="{CHOICE}" toName="{IMAGE}" choice="single">{choices}</Choices></View>'
    )


def _prediction(version, name, score):
    choice = {
        "from_name": CHOICE,
        "to_name": IMAGE,
        "type": "choices",
        "value": {"choices": [name]},
    }
    scored = {} if score is None else {"score": score}
    return {"model_version": version, **scored, "result": [choice]}


def _url(file, folder, root):
    if "://" in file:
        return file
    place = os.path.relpath(os.path.join(folder, file), root)
    if place.split(os.sep)[0] == os.pardir:
        raise UserError(
            f"`root` must contain the files, because Label Studio serves no others. Received: "
            f"root={root!r}, and the file {file!r}"
        )
    return LOCAL_FILES + urllib.parse.quote(place.replace(os.sep, "/"))


def _files(path, examples, files):
    files = [str(file) for file in (examples["file"] if files is None else files)]
    if not all(files):
        raise UserError(
            f"{str(path)!r} does not name the files of the examples. Pass `files`, one path for "
            "each row, in the order of the indices."
        )
    if len(files) != len(examples["index"]):
        raise UserError(
            f"`files` must have one path for each of the {len(examples['index'])} rows of "
            f"{str(path)!r}. Received: {len(files)}"
        )
    return files


def _class_names(examples, class_names):
    columns = (("given_label", "given_class"), ("predicted_label", "predicted_class"))
    largest = int(max(examples[label].max(initial=0) for label, _ in columns))
    if class_names is not None:
        if len(class_names) <= largest:
            raise UserError(
                f"`class_names` must have at least {largest + 1} names. Received: "
                f"{len(class_names)}"
            )
        return list(map(str, class_names))
    known = {}
    for label, name in columns:
        known.update(
            (i, text) for i, text in zip(examples[label], map(str, examples[name])) if text
        )
    return [known.get(i, str(i)) for i in range(largest + 1)]


def _name(names, examples, place):
    predicted = examples["predicted_label"][place]
    return names[predicted] if predicted >= 0 else None


def _plain(value):
    """Returns a number as JSON knows it: None for NaN."""
    value = value.item()
    return None if value != value else value


def _write(path, content):
    with replacing(path, "w") as file:
        json.dump(content, file, indent=1, ensure_ascii=False, allow_nan=False)
