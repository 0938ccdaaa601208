# SPDX-License-Identifier: Apache-2.0
"""Several devices for one run: each batch is divided, and all else is as on one device."""

import contextlib

import keras

from ssl_noisy.errors import UserError


def check(num_devices):
    """Raises the `UserError` of a number of devices that a run cannot have here, None being 1."""
    if num_devices in (None, 1):
        return
    if keras.backend.backend() != "jax":
        raise UserError(
            f"--num_devices={num_devices} needs JAX: set KERAS_BACKEND=jax. On "
            f"{keras.backend.backend()} a run uses one device."
        )
    there = keras.distribution.list_devices()
    if num_devices > len(there):
        raise UserError(
            f"--num_devices must be at most the number of visible devices, {len(there)} "
            f"({', '.join(there)}). Received: --num_devices={num_devices}"
        )


@contextlib.contextmanager
def used(num_devices):
    """Within this context learners are made for, and train on, the first devices.

    Variables have a copy on each device, and each batch is divided among them. The compiled step
    is that of the whole batch: XLA divides its work and adds what must be added, such as gradients
    and the sums of batch norm.

    Args:
        num_devices: Integer, or None for 1, with which nothing is changed.

    Raises:
        UserError: As `check`.
    """
    check(num_devices)
    if num_devices in (None, 1):
        yield
        return
    first = keras.distribution.list_devices()[:num_devices]
    with keras.distribution.DataParallel(devices=first).scope():
        yield


def names():
    """Returns the names of the devices that new learners use, such as `gpu:0`."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return keras.distribution.list_devices()[:1]
    return [str(name) for name in distribution.device_mesh.devices.flat]


def divided(batch):
    """Returns an array with its rows divided among the devices in use, whose number divides it."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return batch
    return keras.distribution.distribute_tensor(batch, distribution.get_data_layout(batch.shape))


def clear_session():
    """Does what `keras.utils.clear_session` does, which also forgets the devices in use."""
    distribution = keras.distribution.distribution()
    keras.utils.clear_session(free_memory=False)
    keras.distribution.set_distribution(distribution)
