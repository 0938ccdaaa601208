# SPDX-License-Identifier: Apache-2.0
"""Clusters beside classes: how well they agree, whatever the numbers of the clusters."""

import numpy as np


def counts(clusters, labels, num_clusters, num_classes):
    """Counts the images of each class in each cluster.

    Args:
        clusters: Integer array of shape `(num_images,)`, in `[0, num_clusters)`.
        labels: Integer array of the same shape, in `[0, num_classes)`.
        num_clusters, num_classes: Positive integers.

    Returns:
        An int64 array of shape `(num_classes, num_clusters)`.
    """
    cells = np.asarray(labels, np.int64) * num_clusters + np.asarray(clusters)
    found = np.bincount(cells, minlength=num_classes * num_clusters)
    return found.reshape(num_classes, num_clusters)


def class_of_cluster(table):
    """Gives each cluster a class of its own, so that as many images as possible are right.

    Args:
        table: Integer array `(num_classes, num_clusters)`, as from `counts`.

    Returns:
        An int64 array of shape `(num_clusters,)`; -1 for clusters that are left over, where there
        are more clusters than classes.

    Reference:
        [Kuhn, 1955](https://doi.org/10.1002/nav.3800020109), the Hungarian method.
    """
    from scipy import optimize  # late: only evaluations need it

    classes, clusters = optimize.linear_sum_assignment(table, maximize=True)
    found = np.full(table.shape[1], -1, np.int64)
    found[clusters] = classes
    return found


def accuracy(table):
    """Returns the fraction of the images that are right if clusters are matched with classes.

    The labels choose the matching, and no class has two clusters. With all images in one cluster it
    is the share of the largest class.

    Args:
        table: As for `class_of_cluster`.

    Returns:
        A float in [0, 1].
    """
    found = class_of_cluster(table)
    matched = np.flatnonzero(found >= 0)
    return float(table[found[matched], matched].sum() / table.sum())


def normalized_mutual_information(table):
    """Returns the mutual information of clusters and classes, divided by their mean entropy.

    It needs no matching. With all images in one cluster it is 0.

    Args:
        table: As for `class_of_cluster`.

    Returns:
        A float in [0, 1], as scikit-learn's `normalized_mutual_info_score`.
    """
    joint = table / table.sum()
    classes, clusters = joint.sum(axis=1), joint.sum(axis=0)

    def entropy(probs):
        probs = probs[probs > 0]
        return -float(np.sum(probs * np.log(probs)))

    entropies = entropy(classes), entropy(clusters)
    information = sum(entropies) - entropy(joint)
    if max(entropies) == 0:  # one class in one cluster
        return 1.0
    return max(information, 0.0) / (sum(entropies) / 2)
