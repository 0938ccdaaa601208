# SPDX-License-Identifier: Apache-2.0
"""How good features are, without training on them: their rank, and the class of their neighbors."""

import numpy as np

from ssl_noisy import devices
from ssl_noisy.data.feature_file import normalized

MOST_IMAGES = 25_600  # of which the rank is computed, as in the paper
NEIGHBORS, TEMPERATURE = 200, 0.1  # as in MoCo's demo for CIFAR-10
BLOCK = 2**24  # similarities at a time: 64 MB


def rank_me(features, epsilon=1e-7):
    """Returns the effective rank of features: exp of the entropy of their singular values.

    The singular values are divided by their sum. The rank is 1 if all features are multiples of one
    another, and the number of features if they vary equally in all directions. Among trainings of
    one kind it tells without labels which one collapsed.

    Args:
        features: Float array of shape `(num_images, num_features)`, not centered.
        epsilon: Float, added to each fraction.

    Returns:
        A float, from 1 to about min(num_images, num_features).

    Reference:
        [Garrido et al., 2023](https://arxiv.org/abs/2210.02885), equation 1.
    """
    features = np.asarray(features, "float64")
    if len(features) < features.shape[1]:
        features = features.T
    # The eigenvalues of the smaller product are the squares of the singular values.
    squares = np.linalg.eigvalsh(features.T @ features)
    values = np.sqrt(np.maximum(squares, 0))
    shares = values / max(values.sum(), 1e-300) + epsilon
    return float(np.exp(-np.sum(shares * np.log(shares))))


def nearest_neighbor_accuracy(
    features,
    labels,
    known_features,
    known_labels,
    neighbors=NEIGHBORS,
    temperature=TEMPERATURE,
    block=BLOCK,
):
    """Returns how often the nearest of the known images vote for the right class.

    An image's neighbors are those of the largest cosine. The vote of each counts exp(cosine /
    temperature).

    Args:
        features: Float array of shape `(num_images, num_features)`.
        labels: Integer array of shape `(num_images,)`.
        known_features: Float array of shape `(num_known, num_features)`.
        known_labels: Integer array of shape `(num_known,)`, at least 0.
        neighbors: Positive integer, at most `num_known` of which count.
        temperature: Float above 0.
        block: Positive integer, how many similarities are in memory at a time. The result is the
            same.

    Returns:
        A float in [0, 1].

    Reference:
        [Wu et al., 2018](https://arxiv.org/abs/1805.01978), section 3.4.
    """
    features, known = normalized(features), normalized(known_features).T
    neighbors, num_classes = min(neighbors, len(known_labels)), int(np.max(known_labels)) + 1
    rows, right = max(1, block // len(known_labels)), 0
    for start in range(0, len(features), rows):
        cosines = features[start : start + rows] @ known
        nearest = np.argpartition(-cosines, neighbors - 1, axis=1)[:, :neighbors]
        votes = np.exp(np.take_along_axis(cosines, nearest, axis=1) / temperature)
        scores = np.zeros((len(cosines), num_classes))
        np.add.at(scores, (np.arange(len(cosines))[:, None], known_labels[nearest]), votes)
        right += int(np.sum(scores.argmax(axis=1) == labels[start : start + rows]))
    return right / len(features)


def features_of(learner, images, batch_size=250):
    """Returns the features of images by the moving average of a learner's weights.

    Args:
        learner: A `Learner` with `featured_networks`, of which the first one counts.
        images: uint8 array of shape `(num_images, height, width, channels)`.
        batch_size: Positive integer, images at a time. The last batch is padded, because TensorFlow
            compiles again for another size.

    Returns:
        A float32 array of shape `(num_images, num_features)`.
    """
    found = []
    with learner.averaged_weights():
        for start in range(0, len(images), batch_size):
            positions = np.arange(start, start + batch_size) % len(images)
            batch = devices.divided(images[positions])
            found.append(learner.featured_networks[0].predict_on_batch(batch)[0])
    return np.concatenate(found)[: len(images)]


def measure(learner, dataset, validation_labels, batch_size=250):
    """Measures the features of a learner, by up to 25,600 training images and all labeled ones.

    Args:
        learner: A `Learner` with a task and `featured_networks`.
        dataset: The `Dataset`, whose validation and test images count.
        validation_labels: Integer array of the labels of the validation images, or None.
        batch_size: As for `features_of`.

    Returns:
        A dict for a row of `metrics.csv`: `rank_me`, and where there are labels and such images
        `validation_knn_accuracy` and `test_knn_accuracy`.
    """
    task = learner.task
    size = min(task.num_examples, MOST_IMAGES)
    sample = np.linspace(0, task.num_examples - 1, size).astype("int64")
    sets = {
        "validation": (dataset.validation_images, validation_labels),
        "test": (dataset.test_images, dataset.test_labels),
    }
    sets = {name: one for name, one in sets.items() if one[0] is not None and len(task.labeled)}
    positions = np.union1d(sample, task.labeled) if sets else sample
    features = features_of(learner, task.images[positions], batch_size)
    row = {"rank_me": rank_me(features[np.searchsorted(positions, sample)])}
    for name, (images, labels) in sets.items():
        row[f"{name}_knn_accuracy"] = nearest_neighbor_accuracy(
            features_of(learner, images, batch_size),
            labels,
            features[np.searchsorted(positions, task.labeled)],
            task.given_labels[task.labeled],
        )
    return row
