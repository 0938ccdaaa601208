# SPDX-License-Identifier: Apache-2.0
"""Training image classifiers with few or wrong labels, in Keras, in one compiled step."""

import gc
import os
import sys

from ssl_noisy import cache
from ssl_noisy.imports import absent
from ssl_noisy.streams import held_stderr, open_closed_streams

open_closed_streams()

# In a command (the word is in place while Python looks for the module to run), Python's garbage
# collector leaves alone what the imports make. There is no garbage among these million objects, and
# looking for it takes 2 of the 6 s of a short training. In scripts and notebooks nothing changes.
_IS_COMMAND = sys.argv[:1] == ["-m"]
if _IS_COMMAND:
    gc.disable()

# Keras imports these, if they are installed, for parts that no command uses: 1.9 of the 6.0 CPU
# seconds that the import takes on TensorFlow.
_UNUSED = ("matplotlib", "pandas", "sklearn")

_BACKENDS = ("tensorflow", "jax")


def _require_backend(name, is_installed=True):
    """Raises the `ImportError` of a backend that cannot be used; one line under `python -m`."""
    if name in _BACKENDS and is_installed:
        return
    problem = (
        f"Keras's backend {name!r} is not installed. Install it, or set KERAS_BACKEND"
        if name in _BACKENDS
        else f"ssl_noisy runs on Keras's backends {' and '.join(_BACKENDS)}. Received: "
        f"{name!r}. Set KERAS_BACKEND"
    )
    message = f"{problem} to {' or '.join(other for other in _BACKENDS if other != name)}."
    if _IS_COMMAND:
        print(f"ssl_noisy: {message}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(message)


# With several operations at a time, two equal runs on CIFAR-10 differed in the last bits after some
# 30 steps on TensorFlow and two cores, its operation determinism switched on or not; with one at a
# time they were equal, and as fast, for each operation has all cores. A setting of yours stays.
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

# No notices, such as "Memory patch applied", by which the operation that feeds batches to `fit`
# tells how it set the allocator. Warnings and errors still come. A setting of yours stays.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

# TensorFlow greets with a dozen lines at import and at its first look for devices, which
# TF_CPP_MIN_LOG_LEVEL does not silence (tensorflow issue 100442). They would bury our one-line
# messages; `ssl_noisy.train` names the device it runs on.
_require_backend(os.environ.get("KERAS_BACKEND") or "tensorflow")  # unset: keras.json may tell
try:
    with held_stderr(), absent(*(_UNUSED if _IS_COMMAND else ())):
        import keras

        if keras.backend.backend() == "tensorflow":
            keras.distribution.list_devices()
except ModuleNotFoundError as error:
    if error.name not in (*_BACKENDS, "torch"):
        raise
    _require_backend(error.name, is_installed=False)
_require_backend(keras.backend.backend())

if _IS_COMMAND and keras.backend.backend() == "jax":
    cache.keep_programs()
    # Keras looks for TensorFlow when it first serializes something, and would import it in vain.
    with absent("tensorflow"):
        keras.saving.serialize_keras_object(keras.initializers.Zeros())

from ssl_noisy import challenge, methods, networks  # noqa: E402
from ssl_noisy.augment.layers import CTAugment, Cutout, RandAugment, WeakView  # noqa: E402
from ssl_noisy.data.task import Task  # noqa: E402
from ssl_noisy.labels.aum import AUMCalculator  # noqa: E402
from ssl_noisy.learner import Learner  # noqa: E402
from ssl_noisy.recorder import Recorder  # noqa: E402

__version__ = "0.1.0"
__all__ = ["AUMCalculator", "BetaMixtureModel", "Learner", "Recorder", "Task"]
__all__ += ["CTAugment", "Cutout", "RandAugment", "WeakView", "challenge", "methods", "networks"]


def __getattr__(name):
    if name != "BetaMixtureModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ssl_noisy.labels.mixture_model import BetaMixtureModel  # late: it needs scikit-learn

    return BetaMixtureModel


# Each method's class by its own name; importing it registers it with Keras, for loading.
for _name in methods.names():
    _class = methods.get(_name)
    globals()[_class.__name__] = _class
    __all__.append(_class.__name__)

if _IS_COMMAND:
    gc.freeze()
    gc.enable()
