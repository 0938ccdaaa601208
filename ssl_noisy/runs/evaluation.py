# SPDX-License-Identifier: Apache-2.0
"""The accuracy of a run, with the averaged weights, by named protocols."""

import keras
import numpy as np

from ssl_noisy import devices, matching
from ssl_noisy.data import label_budget
from ssl_noisy.runs import calibration

PROTOCOLS = ("last", "median_of_last_20", "validation_choice", "best_on_test_oracle")


def averaged_logits(learner, images, batch_size=250):
    """Returns the logits of images by the moving average of a learner's weights.

    Args:
        learner, images, batch_size: As for `evaluate`.

    Returns:
        A float32 array of shape `(num_images, num_classes)`.
    """
    logits = []
    with learner.averaged_weights():
        for start in range(0, len(images), batch_size):
            positions = np.arange(start, start + batch_size) % len(images)
            batch = devices.divided(images[positions])
            logits.append(learner.classifier.predict_on_batch(batch))
    return np.concatenate(logits)[: len(images)]


def evaluate(learner, images, labels, batch_size=250):
    """Evaluates the moving average of a learner's weights on labeled images.

    Args:
        learner: A `Learner`.
        images: uint8 array of shape `(num_images, height, width, channels)`, or features.
        labels: Integer array of shape `(num_images,)`.
        batch_size: Positive integer, images at a time. It does not affect the result. The last
            batch is padded, because TensorFlow traces and compiles again for another size.

    Returns:
        A tuple `(accuracy, recall)`: a float in [0, 1], and a float array of
        shape `(num_classes,)`, NaN for a class without images.
    """
    counts = confusion_matrix(averaged_logits(learner, images, batch_size), labels)
    return float(np.trace(counts) / counts.sum()), recall_of(counts)


def evaluate_clusters(learner, images, labels, num_classes, batch_size=250):
    """Compares clusters, by the moving average of a learner's weights, with classes.

    Args:
        learner, images, labels, batch_size: As for `evaluate`.
        num_classes: Integer, of the labels.

    Returns:
        A tuple `(accuracy, nmi)` of floats in [0, 1]: see `matching`.
    """
    table = _cluster_counts(averaged_logits(learner, images, batch_size), labels, num_classes)
    return matching.accuracy(table), matching.normalized_mutual_information(table)


def _cluster_counts(logits, labels, num_classes):
    clusters = np.argmax(logits, axis=-1)
    return matching.counts(clusters, labels, logits.shape[-1], num_classes)


def row(learner, dataset, validation_labels, batch_size=250):
    """Returns what a row of `metrics.csv` says of validation and test images, a dict.

    Args:
        learner: A `Learner`.
        dataset: The `Dataset`.
        validation_labels: Integer array, or None without a validation split.
        batch_size: As for `evaluate`.
    """
    found = {}
    owner = dataset if learner.finds_clusters else learner.task  # which may have features instead
    sets = {
        "validation": (owner.validation_images, validation_labels),
        "test": (owner.test_images, dataset.test_labels),
    }
    for name, (images, labels) in sets.items():
        if images is None:
            continue
        if learner.finds_clusters:
            values = evaluate_clusters(learner, images, labels, dataset.num_classes, batch_size)
            found[f"{name}_cluster_accuracy"], found[f"{name}_nmi"] = values
        else:
            found[f"{name}_accuracy"], _ = evaluate(learner, images, labels, batch_size)
    return found


def confusion_matrix(logits, labels):
    """Counts predictions: `(num_classes, num_classes)`, true classes in rows, from logits."""
    from sklearn import metrics  # late: it takes a second, which would delay the first step

    predicted = np.argmax(logits, axis=-1)
    return metrics.confusion_matrix(labels, predicted, labels=np.arange(logits.shape[-1]))


def recall_of(counts):
    """Returns the recall of each class of a confusion matrix, NaN for one without examples."""
    with np.errstate(invalid="ignore"):
        return np.diag(counts) / counts.sum(axis=1)


def summarize(history):
    """Returns the test accuracy of a run by each protocol that papers use.

    Args:
        history: List of dicts, one per evaluation, in order, with `test_accuracy` and, if there is
            a validation split, `validation_accuracy`. Without a test split, and with clusters in
            place of classes, all protocols are None.

    Returns:
        A dict with `last`, the final checkpoint; `median_of_last_20`, the median of the last 20
        evaluations, as FixMatch reports it (None if there are fewer, because a median over a whole
        training means little); `validation_choice`, the test accuracy at the first best validation
        accuracy (None without a validation split); and `best_on_test_oracle`, the best test
        accuracy, which uses the test set to choose and is not a fair estimate.
    """
    if "test_accuracy" not in history[-1]:
        return dict.fromkeys(PROTOCOLS)
    test = [row["test_accuracy"] for row in history]
    chosen = None
    if "validation_accuracy" in history[-1]:
        chosen = test[best_of(history)]
    return {
        "last": test[-1],
        "median_of_last_20": float(np.median(test[-20:])) if len(test) >= 20 else None,
        "validation_choice": chosen,
        "best_on_test_oracle": max(test),
    }


def best_of(history):
    """Returns the position of the first row with the best validation accuracy."""
    return int(np.argmax([row["validation_accuracy"] for row in history]))


def batch_size(settings, dataset):
    """Returns the batch size of all evaluations of a run.

    It is at most the size of the larger set, rounded up to a multiple of the number of devices.
    """
    sets = [x for x in (dataset.test_labels, dataset.validation_labels) if x is not None]
    largest = max(map(len, sets), default=settings.evaluation_batch_size)
    size, count = min(settings.evaluation_batch_size, largest), len(devices.names())
    return size + -size % count


def num_parameters(network):
    """Returns the number of trainable parameters, as papers count them."""
    return sum(int(np.prod(v.shape)) for v in network.trainable_variables)


def result(training, learner, history):
    """Returns the part of `result.json` about the accuracy of a training, a dict for JSON.

    Args:
        training: The `Training`.
        learner: Its `Learner`, trained.
        history: List of dicts, one for each evaluation, as in `summarize`.
    """
    settings, dataset = training.settings.resolved(), training.dataset
    size = batch_size(settings, dataset)
    begins_with = settings.beginning()
    if learner.finds_clusters:
        of_images = _of_clusters(learner, dataset, size)
    else:
        of_images = _of_images(learner, dataset, size, training.validation_labels)
    return {
        "method": settings.method,
        "dataset": f"{dataset.name} {dataset.version}",
        "num_labels": len(training.labels.positions),
        "labels_sha256": label_budget.digest(dataset, training.labels.positions),
        "seed": settings.seed,
        "network": settings.network,
        "parameters": num_parameters(learner.classifier),
        "steps": settings.steps,
        "backend": keras.backend.backend(),
        **({} if begins_with is None else {"begins_with": begins_with}),
        "test_accuracy": summarize(history),
        "class_names": list(dataset.class_names),
        **of_images,
        "last_epoch": {k: v for k, v in history[-1].items() if k not in ("step", "epoch")},
    }


def _of_clusters(learner, dataset, size):
    """Returns what a result says of clusters, and of test images in them, if there are any."""
    found = {"clusters": {"num_clusters": learner.num_classes}}
    if dataset.test_images is not None:
        logits = averaged_logits(learner, dataset.test_images, size)
        table = _cluster_counts(logits, dataset.test_labels, dataset.num_classes)
        found["clusters"] |= {
            "test_cluster_accuracy": matching.accuracy(table),
            "test_nmi": matching.normalized_mutual_information(table),
            "class_of_cluster": [
                dataset.class_names[label] if label >= 0 else None
                for label in matching.class_of_cluster(table)
            ],
            "counts_by_class": dict(zip(dataset.class_names, table.tolist())),
        }
    return found | {"calibration": calibration.summary(None, None)}


def _of_images(learner, dataset, size, validation_labels):
    """Returns what a result says of the images with a label that are not trained on."""
    validation, task = (None, None), learner.task
    if task.validation_images is not None:
        found = averaged_logits(learner, task.validation_images, size)
        validation = (found, validation_labels)
    images = task.test_images
    if images is None:
        return {"calibration": calibration.summary(None, None, *validation)}
    return of_test(averaged_logits(learner, images, size), dataset, validation)


def of_test(logits, dataset, validation=(None, None)):
    """Returns what a result says of the logits of the test images, beside the accuracy.

    Args:
        logits: Float array `(num_test, num_classes)`.
        dataset: The `Dataset`.
        validation: Logits and labels of the validation images; None without any.
    """
    counts = confusion_matrix(logits, dataset.test_labels)
    return {
        "per_class_recall": {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(dataset.class_names, recall_of(counts))
        },
        "confusion_matrix": counts.tolist(),
        "calibration": calibration.summary(logits, dataset.test_labels, *validation),
    }
