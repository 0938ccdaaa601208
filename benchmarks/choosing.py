# SPDX-License-Identifier: Apache-2.0
"""Time and memory of choosing what to label: python benchmarks/choosing.py RULE [NUM_EXAMPLES]

The features are made: 128 numbers each, of 100 Gaussian clusters. It prints a
line of JSON with the seconds that the choice took, and the memory that it
needed beside the features.
"""

import json
import resource
import sys
import time

import numpy as np

from ssl_noisy.selection import rules

NUM_FEATURES, NUM_CLUSTERS, BUDGET = 128, 100, 40


def main(rule, num_examples):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(NUM_CLUSTERS, NUM_FEATURES)).astype(np.float32)
    features = rng.standard_normal((num_examples, NUM_FEATURES), np.float32)
    features += 2 * centers[rng.integers(NUM_CLUSTERS, size=num_examples)]
    everything = np.arange(num_examples)
    nothing = everything[:0]
    pool = rules.Pool(everything, nothing, features, np.full(num_examples, -1), 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    choice = rules.choose(rule, pool, BUDGET, seed=0)
    seconds = time.monotonic() - began
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found = {"rule": rule, "num_examples": num_examples, "seconds": round(seconds, 1)}
    print(json.dumps({**found, "gigabytes_more": round(more / 1e6, 2), **choice.facts}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000)
