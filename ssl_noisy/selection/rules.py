# SPDX-License-Identifier: Apache-2.0
"""The rules that choose which images to label: a table, and the rules themselves.

To add a rule, add a function and an entry to `RULES`. Flags, help and commands read this table.
"""

import collections
import collections.abc
import dataclasses

import numpy as np

from ssl_noisy.data import feature_file, label_budget
from ssl_noisy.data.dataset import fixed_shuffle
from ssl_noisy.errors import UserError
from ssl_noisy.selection import neighbors

MOST_CLUSTERS = 500
SMALL_CLUSTER = 5  # members; typical examples of so small clusters are outliers
NUM_NEIGHBORS = 20
NUM_PSEUDO_CLASSES = 30
PURITY = 0.95
MANY = 100_000  # examples of which k-means starts once: ten starts would take minutes
_STREAM = 0xC0417A  # keeps the order of clusters independent of other uses of the same seed
SMALLEST_RADIUS = 1e-3  # float32 similarities do not tell smaller distances from 0


class SelectionError(UserError):
    """A choice that cannot be made."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """What a rule chooses from.

    Attributes:
        candidates: int64 array, positions of the examples that may be chosen.
        labeled: int64 array, positions of the examples that have a label already.
        features: float32 array `(num_examples, num_features)`, or None. Examples that are neither
            labeled nor candidates count as part of the data.
        labels: Integer array `(num_examples,)`, -1 where unknown, for rules that need classes.
        num_classes: Integer, 0 if unknown.
        radius: Float in [0.001, 2), that of ProbCover's balls, or None to estimate it.
        confidence, variability: Float arrays `(num_examples,)`, NaN where unknown, or None: how
            often and how steadily a contrastive training recognized each image.
    """

    candidates: np.ndarray
    labeled: np.ndarray
    features: np.ndarray | None
    labels: np.ndarray
    num_classes: int
    radius: float | None = None
    confidence: np.ndarray | None = None
    variability: np.ndarray | None = None


def pool_of(dataset, candidates, labeled, path=None, radius=None) -> Pool:
    """Returns the `Pool` of a data set, with the features of a file.

    Args:
        dataset: The `Dataset`.
        candidates, labeled, radius: As in `Pool`.
        path: Path of the feature file, or None.

    Raises:
        FeatureError: If the file is not of these images.
    """
    features = confidence = variability = None
    if path:
        stored = feature_file.read(path)
        features = stored.training(dataset)
        confidence, variability = (
            stored.statistic(name, dataset) for name in ("confidence", "variability")
        )
    labels, num_classes = dataset.labels, dataset.num_classes
    known = (features, labels, num_classes, radius, confidence, variability)
    return Pool(candidates, labeled, *known)


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """What a rule chose.

    Attributes:
        positions: int64 array `(budget,)`, in the order of choice.
        columns: Dict from name to array `(budget,)`: why each was chosen.
        facts: Dict from name to number: what describes the choice as a whole.
    """

    positions: np.ndarray
    columns: dict
    facts: dict


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        choose: Function of a `Pool`, the budget and a seed, which returns a `Choice`.
        help: What it does, in a few words.
        needs_features: Whether it needs features.
        needs_labels: Whether it needs to know the labels beforehand.
    """

    choose: collections.abc.Callable
    help: str
    needs_features: bool = True
    needs_labels: bool = False


def choose(how, pool, budget, seed) -> Choice:
    """Chooses examples to label.

    Args:
        how: A key of `RULES`.
        pool: The `Pool`. Its features need not be normalized.
        budget: Integer in `[1, n]`, the number of examples to choose of n candidates.
        seed: Non-negative integer.

    Raises:
        SelectionError: If the budget is too large, or the rule lacks what it needs.
    """
    rule = RULES[how]
    if not 0 < budget <= len(pool.candidates):
        raise SelectionError(
            f"The budget must be in [1, {len(pool.candidates)}], the number of examples that are "
            f"still to be labeled. Received: {budget}."
        )
    if rule.needs_features and pool.features is None:
        raise SelectionError(
            f"The rule {how} needs features: pass --features=FILE, which python -m "
            "ssl_noisy.features writes, with --network=pixels without any training."
        )
    if rule.needs_features:
        pool = dataclasses.replace(pool, features=feature_file.normalized(pool.features))
    return rule.choose(pool, budget, seed)


def typiclust(pool, budget, seed):
    """Chooses the most typical example of each cluster that has no label yet.

    There are as many clusters as labels, old and new. Those with the fewest labels come first, and
    of these the largest. Typicality is the inverse of the mean distance to the nearest 20, at most
    half, of the unlabeled members. Clusters of at most 5 members come last, when the others are
    used up.

    Departures from the authors' code (avihu111/TypiClust, 2e14a16), both towards the paper: that
    code averages squared distances, and its number of neighbors may be 0, of a cluster whose
    members are used up. Such a cluster is passed over here.

    Reference:
        [Hacohen et al., 2022](https://arxiv.org/abs/2202.02794), section 3.
    """
    return _per_cluster(pool, budget, seed, _typicality, "typicality")


def kmeans(pool, budget, seed):
    """Chooses the example that is nearest to the center of each cluster, as `typiclust` does."""
    return _per_cluster(pool, budget, seed, _centrality, "centrality")


def _typicality(features):
    num_neighbors = min(NUM_NEIGHBORS, max(len(features) // 2, 1))
    return 1 / (neighbors.mean_distances(features, num_neighbors) + 1e-5)


def _centrality(features):
    return -np.linalg.norm(features - features.mean(axis=0), axis=1)


def _per_cluster(pool, budget, seed, score, name):
    """Chooses from the clusters in turn, each time the member of the largest score."""
    count = min(len(pool.labeled) + budget, MOST_CLUSTERS, len(pool.features))
    clusters = clustered(pool.features, count, seed)
    is_candidate, is_labeled = np.zeros((2, len(clusters)), bool)
    is_candidate[pool.candidates] = True
    is_labeled[pool.labeled] = True
    sizes = np.bincount(clusters, minlength=count)
    num_labels = np.bincount(clusters[pool.labeled], minlength=count)
    order = np.lexsort((-sizes, num_labels))
    waiting = collections.deque(order[sizes[order] > SMALL_CLUSTER])
    small = order[sizes[order] <= SMALL_CLUSTER]
    chosen, scores = [], []
    while len(chosen) < budget:
        if not waiting:  # all large clusters are used up
            waiting.extend(small)
        one = waiting.popleft()
        members = np.flatnonzero((clusters == one) & ~is_labeled)
        if not is_candidate[members].any():
            continue
        values = score(pool.features[members]) if len(members) > 1 else np.zeros(1)
        best = np.argmax(np.where(is_candidate[members], values, -np.inf))
        chosen.append(members[best])
        scores.append(values[best])
        is_labeled[members[best]], is_candidate[members[best]] = True, False
        waiting.append(one)
    positions = np.array(chosen, np.int64)
    columns = {"cluster": clusters[positions], name: np.array(scores)}
    covered = len(np.unique(clusters[is_labeled]))
    return Choice(positions, columns, {"clusters": count, "clusters_with_a_label": covered})


def clustered(features, count, seed):
    """Returns the cluster of each example by scikit-learn's k-means, int64 in `[0, count)`.

    As in TypiClust's code, more than 50 clusters are found by mini-batches. Fewer are the best of
    ten starts, or for more than 100,000 examples those of one start.
    """
    from sklearn import cluster  # late: it takes a second

    if count <= 50:
        starts = 10 if len(features) <= MANY else 1
        found = cluster.KMeans(count, n_init=starts, random_state=seed)
    else:
        found = cluster.MiniBatchKMeans(count, batch_size=5000, n_init=3, random_state=seed)
    return found.fit(features).labels_.astype(np.int64)


def probcover(pool, budget, seed):
    """Chooses the example whose ball covers the most examples that are not covered yet.

    All balls have one radius. If it is not given, it is the largest one at which at least 95 % of
    all balls are pure, where the clusters of k-means stand for classes: as many as there are
    classes, or the budget if they are unknown. If everything is covered, covering starts anew.

    Departures from the authors' code (avihu111/TypiClust, 2e14a16): that code leaves out the last
    examples, if their number is no multiple of 500, and chooses the first example again and again
    once everything is covered.

    Reference:
        [Yehuda et al., 2022](https://arxiv.org/abs/2205.11320), section 4.
    """
    features, radius = pool.features, pool.radius
    if radius is None:
        count = min(max(pool.num_classes or budget, 2), len(features))
        clusters = clustered(features, count, seed)
        radius = neighbors.pure_radius(features, clusters, PURITY)
    radius = max(radius, SMALLEST_RADIUS)
    is_covered = np.zeros(len(features), bool)
    for position in pool.labeled:
        is_covered |= neighbors.within(features, features[position], radius)
    degrees = neighbors.counts_within(features, features[~is_covered], radius)
    is_candidate = np.zeros(len(features), bool)
    is_candidate[pool.candidates] = True
    chosen, gains, ever_covered = [], [], is_covered.copy()
    while len(chosen) < budget:
        best = np.argmax(np.where(is_candidate, degrees, 0))
        if not (is_candidate[best] and degrees[best]):
            is_covered = ~is_candidate
            degrees = neighbors.counts_within(features, features[is_candidate], radius)
            degrees[is_candidate] = np.maximum(degrees[is_candidate], 1)  # zeros are in no ball
            continue
        new = neighbors.within(features, features[best], radius) & ~is_covered
        chosen.append(best)
        gains.append(new.sum())
        degrees -= neighbors.counts_within(features, features[new], radius)
        is_covered |= new
        ever_covered |= new
        is_candidate[best] = False
    facts = {"radius": float(radius), "fraction_covered": float(ever_covered.mean())}
    return Choice(np.array(chosen, np.int64), {"newly_covered": np.array(gains)}, facts)


def contrast_easy(pool, budget, seed):
    """Chooses from 30 clusters in turn the image that its training recognized most often.

    The order of the clusters is random. Departure from the authors' code (c-liangyu/CSVAL,
    260f1f0): it clusters an embedding of the features by UMAP, here the features themselves.

    Reference:
        [Chen et al., 2023](https://arxiv.org/abs/2210.02442).
    """
    return _by_contrast(pool, budget, seed, "confidence", 1)


def contrast_ambiguous(pool, budget, seed):
    """Chooses, as `contrast_easy`, the image that was recognized least steadily."""
    return _by_contrast(pool, budget, seed, "variability", 1)


def contrast_hard(pool, budget, seed):
    """Chooses, as `contrast_easy`, the image that was recognized most rarely."""
    return _by_contrast(pool, budget, seed, "confidence", -1)


def _by_contrast(pool, budget, seed, name, sign):
    values = getattr(pool, name)
    if values is None:
        raise SelectionError(
            "The rules contrast_easy, contrast_ambiguous and contrast_hard need the features of a "
            "run of moco_v2, which knows how often it recognized each image: python -m "
            "ssl_noisy.features --run_dir=RUN."
        )
    count = min(NUM_PSEUDO_CLASSES, len(pool.features))
    clusters = clustered(pool.features, count, seed)
    order = pool.candidates[np.argsort(-sign * values[pool.candidates], kind="stable")]  # NaN last
    waiting = [collections.deque(order[clusters[order] == one]) for one in range(count)]
    waiting = [waiting[one] for one in fixed_shuffle(count, [seed, _STREAM])]
    chosen = []
    while len(chosen) < budget:
        turn = [one for one in waiting if one]
        chosen += [one.popleft() for one in turn[: budget - len(chosen)]]
    positions = np.array(chosen, np.int64)
    columns = {"cluster": clusters[positions], name: values[positions]}
    together = np.concatenate([positions, pool.labeled])
    covered = len(np.unique(clusters[together]))
    return Choice(positions, columns, {"clusters": count, "clusters_with_a_label": covered})


def uniform(pool, budget, seed):
    """Chooses any examples, all equally likely, as `label_budget.draw` does."""
    return _drawn(np.zeros_like(pool.labels), pool, budget, seed, "uniform")


def balanced(pool, budget, seed):
    """Chooses equally many examples of each class, which needs all labels beforehand."""
    return _drawn(pool.labels, pool, budget, seed, "balanced")


def _drawn(labels, pool, budget, seed, how):
    eligible = np.full(len(labels), -1)
    eligible[pool.candidates] = labels[pool.candidates]
    num_classes = max(pool.num_classes, 1)
    drawn = label_budget.draw(eligible, budget, num_classes=num_classes, seed=seed, how=how)
    return Choice(drawn, {}, {})


RULES = {
    "typiclust": Rule(typiclust, "the most typical image of each cluster"),
    "probcover": Rule(probcover, "images whose neighborhoods cover the most others"),
    "contrast_easy": Rule(contrast_easy, "images that MoCo v2 recognized most often"),
    "contrast_ambiguous": Rule(contrast_ambiguous, "images that it recognized least steadily"),
    "contrast_hard": Rule(contrast_hard, "images that it recognized most rarely"),
    "kmeans": Rule(kmeans, "the image nearest to the center of each cluster"),
    "uniform": Rule(uniform, "any images", needs_features=False),
    "balanced": Rule(
        balanced, "equally many of each class", needs_features=False, needs_labels=True
    ),
}
BY_FEATURES = tuple(name for name, rule in RULES.items() if rule.needs_features)
