# SPDX-License-Identifier: Apache-2.0
"""Training image classifiers with few or wrong labels, in Keras, in one compiled step."""

import os

from ssl_noisy.quiet import held_stderr

# With several operations at a time, two equal runs on CIFAR-10 differed in the last bits after some
# 30 steps on TensorFlow and two cores, its operation determinism switched on or not; with one at a
# time they were equal, and as fast, for each operation has all cores. A setting of yours stays.
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

# TensorFlow greets with a dozen lines at import and at its first look for devices, which
# TF_CPP_MIN_LOG_LEVEL does not silence (tensorflow issue 100442). They would bury our one-line
# messages; `ssl_noisy.train` names the device it runs on.
with held_stderr():
    import keras

    if keras.backend.backend() == "tensorflow":
        keras.distribution.list_devices()

from ssl_noisy import methods, networks  # noqa: E402
from ssl_noisy.aum import AUM  # noqa: E402
from ssl_noisy.learner import Learner  # noqa: E402
from ssl_noisy.mixture import BetaMixture  # noqa: E402
from ssl_noisy.task import Task  # noqa: E402

__version__ = "0.1.0"
__all__ = ["AUM", "BetaMixture", "Learner", "Task", "methods", "networks"]

# Each method's class by its own name; importing it registers it with Keras, for loading.
for _name in methods.names():
    _class = methods.get(_name)
    globals()[_class.__name__] = _class
    __all__.append(_class.__name__)
