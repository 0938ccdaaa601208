# SPDX-License-Identifier: Apache-2.0
"""How far confidences can be trusted, and one number that corrects them."""

import numpy as np
from scipy import special

TEMPERATURES = (0.05, 20.0)  # the range of the search
BINS = 15  # as in the paper


def fit_temperature(logits, labels):
    """Returns the temperature that makes the labels most likely.

    Dividing the logits by it changes confidences and no predicted class.

    Args:
        logits: Float array `(n, num_classes)` of examples that were not trained on.
        labels: Integer array `(n,)`.

    Returns:
        A float in `TEMPERATURES`. Above 1 means that the network is too confident.

    Reference:
        [Guo et al., 2017](https://arxiv.org/abs/1706.04599), section 4.2.
    """

    from scipy import optimize  # late: only the end of a training needs it

    def cross_entropy(log_temperature):
        log_probs = special.log_softmax(logits / np.exp(log_temperature), axis=-1)
        return -log_probs[np.arange(len(labels)), labels].mean()

    logits = np.asarray(logits, "float64")
    found = optimize.minimize_scalar(cross_entropy, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def expected_calibration_error(logits, labels, temperature=1.0):
    """Returns the mean distance between confidence and accuracy, a float in [0, 1].

    Args:
        logits: Float array `(n, num_classes)`.
        labels: Integer array `(n,)`.
        temperature: Float above 0 that divides the logits.

    Returns:
        The sum, over 15 bins of equal width of the largest probability, of the fraction of the
        examples in the bin times |accuracy - mean confidence|.

    Reference:
        [Guo et al., 2017](https://arxiv.org/abs/1706.04599), equation 3.
    """
    bins = reliability(logits, labels, temperature)
    gaps = np.subtract(bins["right"], bins["confidence"])
    return float(np.abs(gaps).sum() / len(labels))


def reliability(logits, labels, temperature=1.0):
    """Sums up the predictions by their confidence, for a reliability diagram.

    Args:
        logits, labels, temperature: As for `expected_calibration_error`.

    Returns:
        A dict of lists of 15 numbers, one for each bin of equal width of the largest probability:
        `count`, the examples in it; `right`, how many are classified correctly; `confidence`, the
        sum of the largest probabilities.
    """
    probs = special.softmax(np.asarray(logits, "float64") / temperature, axis=-1)
    confidence, is_right = probs.max(axis=-1), probs.argmax(axis=-1) == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # (low, high]
    return {
        "count": np.bincount(bins, minlength=BINS).tolist(),
        "right": np.bincount(bins[is_right], minlength=BINS).tolist(),
        "confidence": np.bincount(bins, confidence, minlength=BINS).tolist(),
    }


def summary(test_logits, test_labels, validation_logits=None, validation_labels=None):
    """Returns a dict for `result.json`.

    Args:
        test_logits, test_labels: As for `expected_calibration_error`, or None.
        validation_logits, validation_labels: Likewise. With them a temperature is fitted.
    """
    if test_logits is None:
        known = validation_logits is not None
        return {
            "temperature": fit_temperature(validation_logits, validation_labels) if known else 1.0
        }
    before = expected_calibration_error(test_logits, test_labels)
    found = {"temperature": 1.0, "expected_calibration_error": before}
    if validation_logits is not None:
        temperature = fit_temperature(validation_logits, validation_labels)
        after = expected_calibration_error(test_logits, test_labels, temperature)
        found = {"temperature": temperature, "expected_calibration_error": after}
        found["expected_calibration_error_before"] = before
    found["reliability"] = reliability(test_logits, test_labels, found["temperature"])
    return found
