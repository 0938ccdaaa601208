# SPDX-License-Identifier: Apache-2.0
"""The work of a training step: operations, bytes and memory, and the most a machine can do."""

import os
import subprocess
import time

import keras
import numpy as np
from keras import ops

from ssl_noisy import devices, machine

SIDE = 2048  # of the matrices whose product is timed
COPIED = 2**26  # numbers that are read and written, far more than any cache holds
REPETITIONS = 3
# Operations of TensorFlow that move nothing, and those that read no more than they return.
VIEWS = ("Identity", "IdentityN", "ReadVariableOp", "Reshape", "Squeeze", "ExpandDims", "NoOp")
TAKING = ("GatherV2", "ResourceGather", "Slice", "StridedSlice")


def of_step(learner):
    """Counts the work of a compiled learner's step, as it is traced.

    An addition or a multiplication of two numbers is an operation. Bytes are those of the
    operands and results of each operation; a compiler that fuses operations moves fewer. The
    branches of a conditional are left out on TensorFlow. On JAX, products with the padding of a
    convolution are.

    Args:
        learner: A compiled `Learner` with a task.

    Returns:
        `(operations, bytes)`, floats.
    """
    batch = learner.batches(start=learner.stage.first_step)[0]
    if keras.backend.backend() == "jax":
        return _of_step_on_jax(learner, batch)
    return _of_step_on_tensorflow(learner, batch)


def _of_step_on_jax(learner, batch):
    import jax

    cost = jax.jit(learner.train_step).lower(jax_state(learner), batch).cost_analysis()
    return cost["flops"], cost["bytes accessed"]


def jax_state(learner):
    """Returns what a learner's `train_step` takes before the batch on JAX: four lists of arrays."""
    if not learner.optimizer.built:  # a learner that has not trained yet
        learner.optimizer.build(learner.trainable_variables)
    variables = (
        learner.trainable_variables,
        learner.non_trainable_variables,
        learner.optimizer.variables,
        learner.metrics_variables,
    )
    return tuple([variable.value for variable in some] for some in variables)


def _of_step_on_tensorflow(learner, batch):
    import tensorflow as tf

    constants = tf.nest.map_structure(tf.constant, batch)
    specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, constants)
    graph = tf.function(learner.train_step).get_concrete_function(specs).graph
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # the profiler warns of a function that it calls itself
    try:
        counted = profiler.profile(graph, cmd="op", options=options).total_float_ops
    finally:
        logger.setLevel(level)
    return float(counted), float(sum(_moved(operation) for operation in graph.get_operations()))


def _moved(operation):
    """Returns the bytes that an operation of TensorFlow reads and writes."""
    if operation.type in VIEWS or not operation.inputs:
        return 0
    written = sum(_bytes(tensor) for tensor in operation.outputs)
    read = sum(_bytes(tensor) for tensor in operation.inputs)
    return written + (written if operation.type in TAKING else read)


def _bytes(tensor):
    """Returns the size of a tensor, 0 for a handle or an unknown shape."""
    if tensor.dtype.size is None or not tensor.shape.is_fully_defined():
        return 0
    return tensor.shape.num_elements() * tensor.dtype.size


def ceilings(dtype):
    """Measures how fast this machine multiplies large matrices, and copies a long array.

    Args:
        dtype: String, the type of the matrices.

    Returns:
        `(operations, bytes)` a second, floats: the fastest of three. A copy reads and writes.
    """
    square = ops.ones((SIDE, SIDE), dtype)
    long = ops.ones((COPIED,), "float32")
    per_product = _seconds(lambda: ops.matmul(square, square)[0, :1])
    per_copy = _seconds(lambda: ops.add(long, 1.0)[:1])
    return 2 * SIDE**3 / per_product, 2 * 4 * COPIED / per_copy


def shares(learner, seconds):
    """Compares a step with the `ceilings` of a device of this machine, times those in use.

    Args:
        learner: A compiled `Learner` with a task.
        seconds: Float, the time of its step.

    Returns:
        A dict for JSON: `operations_per_step`, `bytes_per_step`, both ceilings, and which share of
        them the step achieves. The share of bytes may be above 1: see `of_step`.
    """
    operations, moved = of_step(learner)
    count = len(devices.names())
    products, copies = (count * each for each in ceilings(learner.network.compute_dtype))
    return {
        "operations_per_step": operations,
        "bytes_per_step": moved,
        "matrix_operations_per_second": round(products),
        "copy_bytes_per_second": round(copies),
        "share_of_matrix_ceiling": round(operations / seconds / products, 4),
        "share_of_copy_ceiling": round(moved / seconds / copies, 4),
    }


def device_memory():
    """Returns the bytes of memory of the accelerator, or of the machine on a CPU.

    None if the accelerator does not say. TensorFlow has no public function for it, so NVIDIA's
    program tells the size of the smallest card in use.
    """
    if not machine.accelerators():
        return machine.memory()
    if keras.backend.backend() == "jax":
        import jax

        return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        command += ["-i", os.environ["CUDA_VISIBLE_DEVICES"]]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return min(int(line) for line in found.stdout.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def device_memory_mb():
    """Returns the peak memory of the accelerator in MB, or None on a CPU."""
    if keras.backend.backend() == "jax":
        import jax

        stats = jax.devices()[0].memory_stats() or {}
        peak = stats.get("peak_bytes_in_use")
    else:
        import tensorflow as tf

        has_gpu = tf.config.list_physical_devices("GPU")
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] if has_gpu else None
    return None if peak is None else round(peak / 2**20)


def _seconds(compute):
    times = []
    for _ in range(1 + REPETITIONS):  # the first one compiles
        began = time.perf_counter()
        np.asarray(ops.convert_to_numpy(compute()))  # waits for the result
        times.append(time.perf_counter() - began)
    return min(times[1:])
