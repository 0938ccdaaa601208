# SPDX-License-Identifier: Apache-2.0
"""Measures what `Recorder` costs a step of Keras's own `fit`: python benchmarks/recorder_cost.py

Three models of equal weights take turns: two plain ones and one that is watched. The ratio of the
two plain ones says how much of a difference is chance. Prints one JSON line per network, of ratios
of times in the same round: the median, and its 95 % interval from bootstrap samples of the rounds.
The CPU time of the process is less disturbed by others than the time on the clock.
"""

import json
import os
import time

import keras
import numpy as np

import ssl_noisy

BATCH_SIZE, STEPS = 64, 50
ROUNDS = {"wide_lenet": 30, "small_cnn": 6}


def model_of(name, watched):
    keras.utils.set_random_seed(0)
    network = ssl_noisy.networks.build(name, (32, 32, 3), 10)
    if watched:
        network = ssl_noisy.Recorder(BATCH_SIZE * STEPS, 10).watch(network)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, jit_compile=True)
    return network


def interval(ratios, rng):
    """Returns the median and its 95 % interval."""
    samples = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    values = (np.median(ratios), *np.quantile(samples, (0.025, 0.975)))
    return [round(float(value), 4) for value in values]


def measure(name):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH_SIZE * STEPS, 32, 32, 3)).astype("float32")
    labels = rng.integers(0, 10, len(images))
    models = {
        "plain": model_of(name, False),
        "again": model_of(name, False),
        "watched": model_of(name, True),
    }
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    seconds = {(clock, kind): [] for clock in clocks for kind in models}
    for number in range(ROUNDS[name] + 1):  # the first compiles
        for kind in rng.permutation(list(models)):
            began = {clock: read() for clock, read in clocks.items()}
            models[kind].fit(images, labels, batch_size=BATCH_SIZE, verbose=0)
            if number:
                for clock, read in clocks.items():
                    seconds[clock, kind].append(read() - began[clock])
    found = {"network": name, "backend": keras.backend.backend()}
    for clock in clocks:
        plain, again, watched = (np.array(seconds[clock, kind]) for kind in models)
        found[clock] = {
            "ms_per_step": round(1000 * float(np.median(plain)) / STEPS, 2),
            "watched_to_plain": interval(2 * watched / (plain + again), rng),
            "plain_to_plain": interval(plain / again, rng),
        }
    return {**found, "load": round(os.getloadavg()[0], 1)}


if __name__ == "__main__":
    for name in ROUNDS:
        print(json.dumps(measure(name)), flush=True)
