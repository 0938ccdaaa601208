# SPDX-License-Identifier: Apache-2.0
"""The flags that say where runs train: in processes of this machine, or on a Ray cluster."""

import dataclasses
import functools

from absl import flags

from ssl_noisy import machine
from ssl_noisy.errors import UserError
from ssl_noisy.sweeps import cluster, local


@dataclasses.dataclass(frozen=True)
class Workers:
    """Where runs train.

    Attributes:
        parallel: Number of runs at a time, or None for as many as a cluster has room for.
        resources: The `cluster.Resources`, or None to train on this machine.
        devices: Identifiers of the GPUs of this machine.
    """

    parallel: int | None
    resources: cluster.Resources | None = None
    devices: tuple[str, ...] = ()

    def pool(self, sweep_dir):
        """Returns what `conduct` takes: a function that makes a pool, and the number of runs.

        Raises:
            UserError: If there is no such cluster.
        """
        if self.resources is None:
            return functools.partial(local.Pool, devices=self.devices), self.parallel
        room = cluster.connect(self.resources)
        make_pool = functools.partial(cluster.Pool, resources=self.resources, sweep_dir=sweep_dir)
        return make_pool, self.parallel or room


def define_flags(values):
    """Defines these flags and returns their names."""
    define = {"flag_values": values}
    flags.DEFINE_integer(
        "max_parallel",
        None,
        "Runs at a time. Unset: one per GPU, or one per core; on a cluster, as many as have room.",
        lower_bound=1,
        **define,
    )
    flags.DEFINE_string(
        "ray_address",
        None,
        "Train on the Ray cluster at this address, HOST:PORT or auto, started with `ray start`. "
        "All nodes must see the data at the same paths.",
        **define,
    )
    flags.DEFINE_float(
        "run_cpus",
        1.0,
        "With --ray_address: CPUs that Ray reserves for a run. A whole number, or at most 1.",
        **define,
    )
    flags.DEFINE_float(
        "run_gpus",
        0.0,
        "With --ray_address: GPUs likewise. A fraction means that runs share one, 0 that runs use "
        "the CPU.",
        **define,
    )
    return ["max_parallel", "ray_address", "run_cpus", "run_gpus"]


def read(values):
    """Returns the `Workers` of parsed flags.

    Raises:
        UserError: If they are wrong.
    """
    parallel, address = values["max_parallel"].value, values["ray_address"].value
    if address is not None:
        resources = cluster.Resources(address, values["run_cpus"].value, values["run_gpus"].value)
        return Workers(parallel, resources)
    for name in ("run_cpus", "run_gpus"):
        if values[name].present:
            raise UserError(f"--{name} has no effect without --ray_address. Leave it out.")
    devices = tuple(local.gpus())
    parallel = parallel or local.default_parallel(len(devices), machine.memory())
    local.check(parallel, devices)
    return Workers(parallel, None, devices)
