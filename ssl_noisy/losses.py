# SPDX-License-Identifier: Apache-2.0
"""Losses as pure functions of tensors, computed in float32 whatever the inputs' precision."""

from keras import ops


def cross_entropy(labels, logits):
    """Computes the cross-entropy of each example with its integer label.

    Args:
        labels: Integer tensor of shape `(batch_size,)`, in `[0, num_classes)`.
        logits: Float tensor of shape `(batch_size, num_classes)`.

    Returns:
        A float32 tensor of shape `(batch_size,)`, in nats.

    Raises:
        ValueError: If the shapes do not have this form.
    """
    _check_rank("logits", logits, 2)
    _check_shape("labels", labels, logits.shape[:1])
    log_probs = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    return -ops.squeeze(ops.take_along_axis(log_probs, labels[:, None], axis=-1), axis=-1)


def soft_cross_entropy(soft_labels, logits):
    """Computes the cross-entropy of each example with its distribution over the classes.

    Args:
        soft_labels: Float tensor of shape `(batch_size, num_classes)` whose rows sum to 1.
        logits: Float tensor of the same shape.

    Returns:
        A float32 tensor of shape `(batch_size,)`, in nats.
    """
    _check_rank("logits", logits, 2)
    _check_shape("soft_labels", soft_labels, logits.shape)
    log_probs = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    return -ops.sum(ops.cast(soft_labels, "float32") * log_probs, axis=-1)


def labeled_cross_entropy(labels, logits):
    """Computes the mean cross-entropy of the examples that have a label.

    Args:
        labels: Integer tensor of shape `(batch_size,)`, -1 for none.
        logits: Float tensor of shape `(batch_size, num_classes)`.

    Returns:
        A float32 scalar; 0, with no gradient, if no example has a label.
    """
    values = cross_entropy(ops.maximum(labels, 0), logits)
    return masked_mean(values, ops.cast(labels >= 0, "float32"))


def distillation(teacher_logits, logits, temperature):
    """Computes the cross-entropy of each example with the soft labels of a teacher.

    The logits of both are divided by the temperature, and the result is multiplied by its square,
    so that gradients have about the same size at all high temperatures.

    Args:
        teacher_logits: Float tensor of shape `(batch_size, num_classes)`. No gradient flows
            through it.
        logits: Float tensor of the same shape.
        temperature: Float > 0.

    Returns:
        A float32 tensor of shape `(batch_size,)`.

    Reference:
        [Hinton et al., 2015](https://arxiv.org/abs/1503.02531), section 2.
    """
    soft_labels = probabilities(teacher_logits, temperature)
    scaled = ops.cast(logits, "float32") / temperature
    return temperature**2 * soft_cross_entropy(soft_labels, scaled)


def kl_divergence(soft_labels, logits):
    """Computes KL(soft_labels || softmax(logits)) of each example: the target comes first.

    Arguments and result as `soft_cross_entropy`; zero where the two agree, and for rows of zeros.
    """
    soft_labels = ops.cast(soft_labels, "float32")
    # x log x is 0 at 0; the floor keeps the logarithm finite.
    negative_entropy = ops.sum(soft_labels * ops.log(ops.maximum(soft_labels, 1e-30)), axis=-1)
    return soft_cross_entropy(soft_labels, logits) + negative_entropy


def jensen_shannon(probs, others):
    """Computes the Jensen-Shannon divergence of pairs of distributions.

    It is the mean of KL(p || m) and KL(q || m) with m = (p + q) / 2: 0 where they agree, log 2
    where they have no class in common.

    Args:
        probs, others: Float tensors of shape `(batch_size, num_classes)` whose rows sum to 1.

    Returns:
        A float32 tensor of shape `(batch_size,)`, in nats.
    """
    _check_shape("others", others, probs.shape)
    probs, others = (ops.cast(one, "float32") for one in (probs, others))
    mean = ops.maximum((probs + others) / 2, 1e-30)
    # x log x is 0 at 0; the floors keep the logarithms finite.
    parts = [p * ops.log(ops.maximum(p, 1e-30) / mean) for p in (probs, others)]
    return ops.maximum(ops.sum(parts[0] + parts[1], axis=-1) / 2, 0.0)


def contrastive(features, others, temperature):
    """Computes the NT-Xent loss: of all views in the batch, a view finds the other of its image.

    It is the cross-entropy of the cosines of a view with all others, divided by the temperature,
    as a mean over both views of all images.

    Args:
        features, others: Float tensors `(batch_size, num_features)`, of two views of each image.
        temperature: Float > 0.

    Returns:
        A float32 scalar.

    Reference:
        [Chen et al., 2020](https://arxiv.org/abs/2002.05709), equation 1. The loss of
        [Khosla et al., 2020](https://arxiv.org/abs/2004.11362) without labels is the same.
    """
    _check_shape("others", others, features.shape)
    views, size = unit_length(ops.concatenate([features, others])), features.shape[0]
    cosines = ops.matmul(views, ops.transpose(views))
    # A large finite number keeps a view from finding itself.
    logits = cosines / temperature - 1e30 * ops.eye(2 * size)
    partners = (ops.arange(2 * size, dtype="int32") + size) % (2 * size)
    return ops.mean(cross_entropy(partners, logits))


def unit_length(features):
    """Divides each row by its Euclidean length, and keeps rows of zeros. Returns float32."""
    features = ops.cast(features, "float32")
    squares = ops.sum(ops.square(features), axis=-1, keepdims=True)
    return features / ops.sqrt(ops.maximum(squares, 1e-24))


def queue_contrastive(queries, keys, queue, temperature):
    """Computes the InfoNCE loss of each query: it finds its key among those of a queue.

    It is the cross-entropy of the cosines with its own key and all keys of the queue, divided by
    the temperature.

    Args:
        queries: Float tensor `(batch_size, num_features)`.
        keys: Float tensor of the same shape, of other views of the same images. No gradient flows
            through it.
        queue: Float tensor `(queue_size, num_features)` of keys of other images, of unit length.
        temperature: Float > 0.

    Returns:
        A float32 tensor of shape `(batch_size,)`.

    Reference:
        [He et al., 2020](https://arxiv.org/abs/1911.05722), equation 1.
    """
    _check_shape("keys", keys, queries.shape)
    queries, keys = unit_length(queries), ops.stop_gradient(unit_length(keys))
    own = ops.sum(queries * keys, axis=-1, keepdims=True)
    others = ops.matmul(queries, ops.transpose(ops.cast(queue, "float32")))
    logits = ops.concatenate([own, others], axis=-1) / temperature
    return cross_entropy(ops.zeros((queries.shape[0],), "int32"), logits)


def soft_contrastive(features, others, targets, temperature):
    """Computes how far each view is from finding its targets among other views of the batch.

    It is the cross-entropy of the cosines of a view with the other view of each image, its own
    included, divided by the temperature.

    Args:
        features, others: Float tensors `(batch_size, num_features)`, of two views of each image.
        targets: Float tensor `(batch_size, batch_size)` whose rows sum to 1: which of the other
            views each view is to find.
        temperature: Float > 0.

    Returns:
        A float32 scalar, the mean over the images.

    Reference:
        [Albert et al., 2023](https://arxiv.org/abs/2210.04578).
    """
    _check_shape("others", others, features.shape)
    cosines = ops.matmul(unit_length(features), ops.transpose(unit_length(others)))
    return ops.mean(soft_cross_entropy(targets, cosines / temperature))


def same_class(labels):
    """Returns targets of `soft_contrastive`: of n images of a class, 1 / n for each of them.

    Args:
        labels: Integer tensor of shape `(batch_size,)`.

    Returns:
        A float32 tensor of shape `(batch_size, batch_size)`.
    """
    same = ops.cast(labels[:, None] == labels[None], "float32")
    return same / ops.sum(same, axis=1, keepdims=True)


def alignment(features, others):
    """Computes the mean squared distance of two views of an image, a float32 scalar in [0, 4].

    Args:
        features, others: Float tensors `(batch_size, num_features)`. Only their directions count.

    Reference:
        [Wang and Isola, 2020](https://arxiv.org/abs/2005.10242), equation 6, with alpha = 2.
    """
    _check_shape("others", others, features.shape)
    squares = ops.square(unit_length(features) - unit_length(others))
    return ops.mean(ops.sum(squares, axis=-1))


def uniformity(features):
    """Computes log of the mean of exp(-2 d^2), d being the distance of two images: in [-8, 0].

    The lower, the more evenly do the features of different images cover the sphere. 0 is a collapse
    to one point.

    Args:
        features: Float tensor `(batch_size, num_features)`, of one view of at least two images.
            Only their directions count.

    Reference:
        [Wang and Isola, 2020](https://arxiv.org/abs/2005.10242), equation 7, with t = 2, as a mean
        over pairs of different images as in their code.
    """
    features, size = unit_length(features), features.shape[0]
    distances = 2 - 2 * ops.matmul(features, ops.transpose(features))
    others = 1 - ops.eye(size)
    return ops.log(ops.sum(ops.exp(-2 * distances) * others) / (size * (size - 1)))


def entropy(logits):
    """Computes the entropy of softmax(logits) in nats, float32 `(batch_size,)`."""
    return soft_cross_entropy(ops.softmax(ops.cast(logits, "float32"), axis=-1), logits)


def disagreement(logits, others):
    """Computes -log of the probability that a class of each of two predictions is the same one.

    The classes are drawn independently, so the probability is the inner product of the two
    distributions.

    Args:
        logits, others: Float tensors of shape `(batch_size, num_classes)`.

    Returns:
        A float32 tensor of shape `(batch_size,)`, in nats: 0 for two equal certain predictions.

    Reference:
        [Van Gansbeke et al., 2020](https://arxiv.org/abs/2005.12320), equation 2, first term.
    """
    _check_rank("logits", logits, 2)
    _check_shape("others", others, logits.shape)
    both = [ops.log_softmax(ops.cast(one, "float32"), axis=-1) for one in (logits, others)]
    return -ops.logsumexp(both[0] + both[1], axis=-1)


def entropy_of_mean(logits):
    """Computes the entropy of the batch's mean probabilities in nats, a float32 scalar.

    It is log(num_classes) where a batch is spread evenly over the classes, and 0 where it is all of
    one. Probabilities count as at least 1e-8.

    Reference:
        [Van Gansbeke et al., 2020](https://arxiv.org/abs/2005.12320), equation 2, second term.
    """
    mean = ops.mean(ops.softmax(ops.cast(logits, "float32"), axis=-1), axis=0)
    mean = ops.maximum(mean, 1e-8)
    return -ops.sum(mean * ops.log(mean))


def prior_loss(logits):
    """Computes -mean over classes of log h, h being the batch's mean probabilities.

    It keeps a network from assigning everything to one class. It is KL(uniform || h) plus the
    constant log(num_classes): a float32 scalar.

    Reference:
        [Arazo et al., 2020](https://arxiv.org/abs/1908.02983), section 3.1, the R_A.
    """
    mean = ops.mean(ops.softmax(ops.cast(logits, "float32"), axis=-1), axis=0)
    return -ops.mean(ops.log(ops.maximum(mean, 1e-12)))


def probabilities(logits, temperature=1.0):
    """Returns softmax(logits / temperature) in float32, through which no gradient flows."""
    return ops.softmax(ops.cast(ops.stop_gradient(logits), "float32") / temperature, axis=-1)


def mean_probabilities(logits):
    """Returns the mean `probabilities` of several views, float32 `(batch_size, num_classes)`.

    Args:
        logits: Iterable of float tensors of shape `(batch_size, num_classes)`, one per view.
    """
    probs = [probabilities(of_view) for of_view in logits]
    return sum(probs) / len(probs)


def sharpen(probs, temperature):
    """Raises probabilities to the power 1 / temperature and normalizes each row.

    Args:
        probs: Float tensor of shape `(batch_size, num_classes)` whose rows sum to 1.
        temperature: Float > 0; below 1 it sharpens, 1 changes nothing.
    """
    # Relative to the largest, which becomes 1: small temperatures do not underflow a whole row.
    powers = (probs / ops.max(probs, axis=-1, keepdims=True)) ** (1 / temperature)
    return powers / ops.sum(powers, axis=-1, keepdims=True)


def margin(labels, logits):
    """Computes the logit of each label less the largest other logit, float32 `(batch_size,)`.

    Arguments as `cross_entropy`. It is positive where the label is the prediction.

    Reference:
        [Pleiss et al., 2020](https://arxiv.org/abs/2001.10528), equation 1.
    """
    _check_rank("logits", logits, 2)
    _check_shape("labels", labels, logits.shape[:1])
    logits = ops.cast(logits, "float32")
    is_label = ops.one_hot(labels, logits.shape[-1], dtype="float32")
    # A large finite number: -inf times 0 is not a number.
    others = ops.max(logits - 1e30 * is_label, axis=-1)
    return ops.sum(logits * is_label, axis=-1) - others


def uniform_cross_entropy(logits):
    """Computes the mean over classes of -log(p + 1e-8), float32 `(batch_size,)`.

    It is the cross-entropy with the uniform distribution, and large where a network is confident.
    The floor, which is that of the CORES code, limits it to 18.42.
    """
    probs = ops.softmax(ops.cast(logits, "float32"), axis=-1)
    return -ops.mean(ops.log(probs + 1e-8), axis=-1)


def cores(labels, logits):
    """Computes -log p[label] - mean over classes of -log(p + 1e-8), float32 `(batch_size,)`.

    Arguments as `cross_entropy`. CORES takes a label for right where it is at most 0. Without the
    floor it would be the mean logit less the label's, and a confident network would pass wrong
    labels: of the logits 0, 40 and 80 every label but the first.

    Reference:
        [Cheng et al., 2021](https://arxiv.org/abs/2010.02347), section 3, as in
        [haochenglouis/cores](https://github.com/haochenglouis/cores).
    """
    return cross_entropy(labels, logits) - uniform_cross_entropy(logits)


def confident_labels(probs, confidence_threshold):
    """Takes the most probable class as label where the network is confident.

    Args:
        probs: Float tensor of shape `(batch_size, num_classes)`.
        confidence_threshold: Float in [0, 1]. An example is kept when its
            largest probability is `>=` this value.

    Returns:
        A tuple `(pseudo_labels, mask)`, both of shape `(batch_size,)`: the
        classes as int32, and 1.0 (kept) or 0.0 as float32.

    Reference:
        [Sohn et al., 2020](https://arxiv.org/abs/2001.07685), equation 4.
    """
    _check_rank("probs", probs, 2)
    mask = ops.cast(ops.max(probs, axis=-1) >= confidence_threshold, "float32")
    return ops.cast(ops.argmax(probs, axis=-1), "int32"), mask


def batch_mean(values, mask):
    """Averages `values * mask` over the whole batch: the divisor is the batch size.

    Args:
        values: Float tensor of shape `(batch_size,)`.
        mask: Float tensor of the same shape; a mask of shape
            `(batch_size, 1)` would broadcast to the product of two means.

    Returns:
        A float32 scalar. It shrinks when few examples are kept.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_rank("values", values, 1)
    _check_shape("mask", mask, values.shape)
    return ops.mean(values * mask)


def masked_mean(values, mask):
    """Averages the values that the mask keeps: the divisor is the sum of the mask.

    Args:
        values: Float tensor of shape `(batch_size,)`.
        mask: Float tensor of the same shape, 1.0 (kept) or 0.0.

    Returns:
        A float32 scalar; 0, with no gradient, if nothing is kept.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_rank("values", values, 1)
    _check_shape("mask", mask, values.shape)
    return ops.sum(values * mask) / ops.maximum(ops.sum(mask), 1.0)


def class_balanced_mean(values, labels, mask, num_classes):
    """Averages the values that the mask keeps within each class, then over these classes.

    It is the mean with weights of 1 / frequency, divided by their sum.

    Args:
        values: Float tensor of shape `(batch_size,)`.
        labels: int32 tensor of the same shape, in `[0, num_classes)`.
        mask: Float tensor of the same shape, 1.0 (kept) or 0.0.
        num_classes: Integer.

    Returns:
        A float32 scalar. Classes of which nothing is kept do not count; 0 if nothing is kept.

    Reference:
        [Van Gansbeke et al., 2020](https://arxiv.org/abs/2005.12320), section 2.3.
    """
    _check_rank("values", values, 1)
    _check_shape("mask", mask, values.shape)
    kept = ops.one_hot(labels, num_classes, dtype="float32") * mask[:, None]
    counts = ops.sum(kept, axis=0)
    means = ops.sum(kept * values[:, None], axis=0) / ops.maximum(counts, 1.0)
    return ops.sum(means) / ops.maximum(ops.sum(ops.cast(counts > 0, "float32")), 1.0)


def smallest_of_each_class(values, labels, quotas):
    """Chooses the examples with the smallest values of each class.

    Args:
        values: Float tensor of shape `(num_examples,)`. Of equal values any may be chosen.
        labels: int32 tensor of the same shape; those of -1 belong to no class.
        quotas: int32 `(num_classes,)`, how many to choose of each class; all, if there are fewer.

    Returns:
        A bool tensor of shape `(num_examples,)`.
    """
    size, num_classes = values.shape[0], quotas.shape[0]
    labels = ops.where(labels < 0, num_classes, labels)
    # Ranks have no ties, so no sort needs to be stable.
    ranks = ops.cast(ops.argsort(ops.argsort(values)), "int32")
    places = ops.argsort(ops.argsort(labels * size + ranks))  # by class, then by value
    counts = ops.sum(ops.cast(labels[:, None] == ops.arange(num_classes + 1), "int32"), axis=0)
    starts = ops.cumsum(counts) - counts
    ends = starts[:num_classes] + ops.cast(quotas, "int32")
    ends = ops.concatenate([ends, ops.zeros((1,), "int32")])
    return ops.cast(places, "int32") < ops.take(ends, labels)


def l2(variables):
    """Computes half the sum of squares of all entries of `variables`, a float32 scalar."""
    return 0.5 * sum(ops.sum(ops.square(ops.cast(v, "float32"))) for v in variables)


def _check_rank(name, tensor, rank):
    if len(tensor.shape) != rank:
        raise ValueError(f"`{name}` must have rank {rank}. Received: {name}.shape={tensor.shape}")


def _check_shape(name, tensor, shape):
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f"`{name}` must have shape {tuple(shape)}. Received: {name}.shape={tuple(tensor.shape)}"
        )
