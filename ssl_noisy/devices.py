# SPDX-License-Identifier: Apache-2.0
"""Several devices for one run, in one or several processes: each batch is divided among them.

All else is as on one device.
"""

import contextlib

import keras
import numpy as np

from ssl_noisy.errors import UserError

LAUNCH = (
    "Start them with srun, or set KERAS_DISTRIBUTION_JOB_ADDRESSES=HOST:PORT of the first one, "
    "KERAS_DISTRIBUTION_NUM_PROCESSES and KERAS_DISTRIBUTION_PROCESS_ID for each"
)


def check(num_devices, num_processes=None):
    """Raises the `UserError` of devices that a run cannot have here. None is 1."""
    if num_devices in (None, 1):
        return
    if keras.backend.backend() != "jax":
        raise UserError(
            f"--num_devices={num_devices} needs JAX: set KERAS_BACKEND=jax. On "
            f"{keras.backend.backend()} a run uses one device."
        )
    processes, there = num_processes or 1, min(_by_process(), key=len)
    if num_devices > processes * len(there):
        where = f" in each of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"--num_devices must be at most the number of visible devices, {len(there)}{where} "
            f"({', '.join(there)}). Received: --num_devices={num_devices}"
        )


def join(num_processes):
    """Makes this process one of several that train together; once, before JAX has computed.

    Raises:
        UserError: If the processes do not find each other.
    """
    if keras.backend.backend() != "jax":
        raise UserError(
            f"--num_processes={num_processes} needs JAX: set KERAS_BACKEND=jax. Received: "
            f"{keras.backend.backend()}"
        )
    import jax

    if not jax.distributed.is_initialized():
        try:
            keras.distribution.initialize()
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"The {num_processes} processes of --num_processes do not find each other: "
                f"{error} {LAUNCH}."
            ) from error
    if jax.process_count() != num_processes:
        raise UserError(
            f"--num_processes={num_processes}, but {jax.process_count()} were started. {LAUNCH}."
        )


def wait_for_all(reason):
    """Waits until all processes have called it."""
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(reason)


def is_first_process():
    """Whether this process is the one that writes and prints: the only one, or the first."""
    if keras.backend.backend() != "jax":
        return True
    import jax

    return not jax.distributed.is_initialized() or jax.process_index() == 0


@contextlib.contextmanager
def used(num_devices, num_processes=None):
    """Within this context learners are made for, and train on, the first devices.

    Variables have a copy on each device, and each batch is divided among them. The compiled step
    is that of the whole batch: XLA divides its work and adds what must be added, such as gradients
    and the sums of batch norm.

    Args:
        num_devices: Integer, or None for 1, with which nothing is changed.
        num_processes: Integer or None, of the processes that have called `join`. Each has as many
            of the devices.

    Raises:
        UserError: As `check`.
    """
    check(num_devices, num_processes)
    if num_devices in (None, 1):
        yield
        return
    count = num_devices // (num_processes or 1)
    first = [name for names in _by_process() for name in names[:count]]
    # `IndexBatches` divides batches among processes itself.
    distribution = keras.distribution.DataParallel(devices=first, auto_shard_dataset=False)
    with distribution.scope():
        yield


def _by_process():
    """Returns the names of the devices of each process, a list of lists."""
    import jax

    found = {device.process_index: [] for device in jax.devices()}
    for name, device in zip(keras.distribution.list_devices(), jax.devices()):
        found[device.process_index].append(name)
    return list(found.values())


def names():
    """Returns the names of the devices that new learners use, such as `gpu:0`."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return keras.distribution.list_devices()[:1]
    return [str(name) for name in distribution.device_mesh.devices.flat]


def num_processes():
    """Returns the number of processes whose devices are in use."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.num_processes


def part(rows):
    """Returns the rows of a batch that are for the devices of this process."""
    if num_processes() == 1:
        return rows
    return np.split(rows, num_processes())[keras.distribution.distribution().data_shard_id]


def divided(batch):
    """Returns an array with its rows divided among the devices in use, whose number divides it.

    With several processes it stays whole, for each device: no process could read the results of
    others.
    """
    distribution = keras.distribution.distribution()
    if distribution is None or num_processes() > 1:
        return batch
    return keras.distribution.distribute_tensor(batch, distribution.get_data_layout(batch.shape))


def largest(number):
    """Returns the largest of the integers of all processes. All of them must call it."""
    if num_processes() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def make_repeatable():
    """Prepares this process for a learner whose training another process repeats bit for bit.

    On TensorFlow it turns off constant folding, unless you have set it. With it, 12 of 27 equal
    runs of FixMatch on CIFAR-10 (two cores, 60 steps) differed from the other 15 in the last bits
    from the first pseudo-label on. Without it, 32 of 32 were equal, and their steps as fast.
    """
    distribution = keras.distribution.distribution()
    # TensorFlow orders some additions by the names of layers, and Keras numbers these. Without
    # this, a learner that follows a baseline in one process and the same learner resumed in
    # another process differ in the last bits.
    keras.utils.clear_session(free_memory=False)
    keras.distribution.set_distribution(distribution)  # `clear_session` forgets it
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if "constant_folding" not in tf.config.optimizer.get_experimental_options():
            tf.config.optimizer.set_experimental_options({"constant_folding": False})
