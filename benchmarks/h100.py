# SPDX-License-Identifier: Apache-2.0
"""Compiles the training step for an NVIDIA H100, on a machine without one, and counts its work.

    python3 -m venv h100 && h100/bin/pip install -e . 'jax[cuda12]==0.10.2'
    h100/bin/python benchmarks/h100.py --network=wrn_28_2 --precision=mixed_bfloat16 --batch_size=64

It takes the flags of ssl_noisy.train. The wheels of jax[cuda12] are 3 GB; XLA's compiler in them
takes the properties of the card from `h100.txtpb`. The data are 50,000 images of CIFAR-10's shape,
and their pixels do not matter. 1 to 3 minutes on 2 cores. Prints one JSON line:

- `kernels`: what the step launches, that is, fused loops, convolutions and other calls of
  libraries, and copies. `small_kernels` move less than 2 MB: the launch is most of their time.
- `gigabytes`: what the kernels read and write. Of an operand of which a kernel only takes rows or a
  slice, such as the resident images, these count. `floor_ms` is the time that these bytes take at
  3.35 TB/s: a lower bound of the step's.
- `temporary_gigabytes`: memory of the step beside weights, state and data.
- `parts`: kernels and megabytes of each kind of layer, and of each function of the project outside
  of the network, in the forward and the backward pass. A kernel counts where its last operation
  belongs. `learner.Learner.train_step()` is the optimizer.
- `layers`: the same of each layer of the network.
- `collectives`: with `--num_devices` above 1, what the cards exchange: the number of operations
  and the bytes that each card gives, by opcode and part. XLA combines small ones of several parts.
  All other figures are those of one card.

The branches of a conditional, such as the fits of a mixture once a pass, count as one kernel
without bytes. Which algorithms cuDNN picks on the card, and real times, only a card can tell.
"""

import collections
import json
import math
import os
import pathlib
import re
import sys

# Before the imports, which read it.
os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu", KERAS_BACKEND="jax")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import flags  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from ssl_noisy import command, contract, work  # noqa: E402
from ssl_noisy.data.task import Task  # noqa: E402
from ssl_noisy.runs.training import make_learner  # noqa: E402

BANDWIDTH = 3.35e12  # bytes a second
SMALL = 2_000_000  # bytes
# Instructions that launch nothing: names of values, and views of memory.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
TAKING = {"gather", "dynamic-slice", "slice"}  # they read as much as they return
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


class Instruction:
    """A line of a program in XLA's text form: `%name = shape opcode(%operand, ...), ...`."""

    LINE = re.compile(r"\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")

    def __init__(self, match):
        self.name, self.shape, self.opcode, rest = match.groups()
        arguments, _, self.attributes = rest.partition(")")
        self.operands = re.findall(r"%([\w.\-]+)", arguments)
        self.number = int(arguments) if self.opcode == "parameter" else None

    def attribute(self, pattern):
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""

    @property
    def bytes(self):
        """The size of the result."""
        arrays = re.findall(r"\b(pred|[a-z]+\d+)[a-z0-9]*\[([\d,]*)\]", self.shape)
        return sum(
            math.prod(int(side) for side in sides.split(",") if side)
            * (1 if kind == "pred" else int(re.search(r"\d+", kind)[0]) / 8)
            for kind, sides in arrays
        )


def computations(text):
    """Returns the computations of a program, lists of `Instruction`, by name, and the entry's."""
    found, entry = {}, None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if header:
            instructions = found[header[2]] = []
            entry = header[2] if header[1] else entry
        elif match := Instruction.LINE.match(line):
            instructions.append(Instruction(match))
    return found, entry


def bytes_read(instruction, sizes, program):
    """Returns how many bytes of its operands a kernel reads."""
    read = [sizes[name] for name in instruction.operands]
    for inner in program.get(instruction.attribute(r"calls=%([\w.\-]+)"), ()):
        if inner.opcode == "parameter":
            within = program[instruction.attribute(r"calls=%([\w.\-]+)")]
            users = [other for other in within if inner.name in other.operands]
            if all(user.opcode in TAKING and user.operands[0] == inner.name for user in users):
                taken = sum(user.bytes for user in users)
                read[inner.number] = min(taken, read[inner.number])
    return sum(read)


def kernels(text):
    """Yields what a compiled program launches, in order.

    Yields:
        Tuples `(kind, where, frame, moved)`: the opcode or the function of a library, the path of
        the operation in the traced program and its stack frame, and the bytes read and written.
    """
    program, entry = computations(text)
    sizes = {one.name: one.bytes for one in program[entry]}
    for one in program[entry]:
        if one.opcode in FREE or one.opcode.endswith("-done"):
            continue
        kind = one.attribute('custom_call_target="([^"]+)"') or one.opcode
        moved = 0 if kind == "conditional" else one.bytes + bytes_read(one, sizes, program)
        frame = one.attribute(r"stack_frame_id=(\d+)")
        yield kind, one.attribute('op_name="([^"]*)"'), frame, moved


def collectives(text, layers):
    """Returns what the cards exchange, as a dict for JSON. Each is counted once, in a loop too."""
    program, _ = computations(text)
    own, found = functions(text), {}
    for instructions in program.values():
        sizes = {one.name: one.bytes for one in instructions}
        for one in instructions:
            if one.opcode.removesuffix("-start") not in COLLECTIVES:
                continue
            frame = one.attribute(r"stack_frame_id=(\d+)")
            where = one.attribute('op_name="([^"]*)"')
            way, place = part(where, own.get(frame, ""), layers)
            origin = f"{way} {re.sub('_[0-9]+$', '', place)}" if where else "several combined"
            name = f"{one.opcode.removesuffix('-start')}: {origin}"
            found.setdefault(name, []).append(sum(sizes[operand] for operand in one.operands))
    return {
        name: {"count": len(given), "bytes": round(sum(given)), "largest": round(max(given))}
        for name, given in found.items()
    }


def functions(text):
    """Returns the innermost function of this project, `module.function`, of each stack frame."""
    tables = {
        name: dict(re.findall(r"^(\d+) (.*)$", rows, re.MULTILINE))
        for name, rows in re.findall(
            r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n((?:\d+ .*\n)+)",
            text,
            re.MULTILINE,
        )
    }
    found = {"0": ""}
    for frame, row in tables["StackFrames"].items():  # callers come before their callees
        location, caller = re.findall(r"=(\d+)", row)
        file, function = re.findall(r"name_id=(\d+)", tables["FileLocations"][location])
        module = re.search(r"/ssl_noisy/([\w/]+)\.py", tables["FileNames"][file])
        name = tables["FunctionNames"][function].strip('"').partition(".<locals>")[0]
        inherited = found[str(int(caller) - 1)]  # it counts from 1, and 1 means none
        found[frame] = f"{module[1].replace('/', '.')}.{name}" if module else inherited
    return found


def part(where, function, layers):
    """Returns the pass and the layer, or the project's function outside the network, of a kernel.

    Args:
        where: String, the path of the operation in the traced program.
        function: String, the innermost function of this project that made it.
        layers: Set of the names of the layers.
    """
    if not where:
        return "layouts", "copies"
    way = "backward" if "transpose(" in where else "forward" if "jvp(" in where else "update"
    scopes = [re.sub(r"^(\w+\()*|\)*$", "", scope) for scope in where.split("/")]
    return way, next((scope for scope in scopes[:-1] if scope in layers), f"{function}()")


def tally(found):
    """Returns the totals of pairs `(name, moved)`, the largest first."""
    counts, moved = collections.Counter(), collections.Counter()
    for name, size in found:
        counts[name] += 1
        moved[name] += size
    return {
        name: {"kernels": counts[name], "megabytes": round(size / 1e6, 1)}
        for name, size in moved.most_common()
    }


def compiled_step(settings):
    """Compiles the step of a run for an H100, and returns it with the names of its layers."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(len(images), dtype=np.int32) % 10
    given = np.where(np.arange(len(images)) < (settings.num_labels or len(images)), labels, -1)
    learner = make_learner(settings, Task(images, given))
    cards = topologies.get_topology_desc(
        "h100",
        "cuda",
        topology=f"1x1x{settings.num_devices or 1}",
        target_config=pathlib.Path(__file__).with_suffix(".txtpb").read_text(),
    )
    # As `keras.distribution.DataParallel`: each card has the state, and its part of the batch.
    mesh = jax.sharding.Mesh(cards.devices, "batch")
    copied, divided = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in ((), ("batch",))
    )
    step = jax.jit(
        learner.train_step,
        donate_argnums=0,
        in_shardings=(copied, divided),
        out_shardings=(None, copied),
    )
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        (work.jax_state(learner), learner.batches(true_labels=labels)[0]),
    )
    compiled = step.lower(*shapes).compile()
    return compiled, {one.name for network in learner.networks for one in contract.leaves(network)}


def report(text, layers):
    """Returns the figures of a compiled program, as a dict for JSON."""
    found = list(kernels(text))
    own = functions(text)
    places = [(*part(where, own.get(frame, ""), layers), moved) for _, where, frame, moved in found]
    parts = ((f"{way} {re.sub('_[0-9]+$', '', place)}", moved) for way, place, moved in places)
    by_layer = ((f"{way} {place}", moved) for way, place, moved in places if place in layers)
    total = sum(moved for *_, moved in found)
    return {
        "kernels": len(found),
        "small_kernels": sum(moved < SMALL for *_, moved in found),
        "kinds": dict(collections.Counter(kind for kind, *_ in found).most_common()),
        "gigabytes": round(total / 1e9, 2),
        "floor_ms": round(1000 * total / BANDWIDTH, 2),
        "parts": tally(parts),
        "layers": tally(by_layer),
        "collectives": collectives(text, layers),
    }


def main(settings, hlo=None):
    compiled, layers = compiled_step(settings)
    text = compiled.as_text()
    if hlo:
        pathlib.Path(hlo).write_text(text)
    result = {
        "program": "benchmarks/h100.py",
        "flags": sys.argv[1:],
        "jax": jax.__version__,
        **report(text, layers),
        "temporary_gigabytes": round(compiled.memory_analysis().temp_size_in_bytes / 1e9, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    _HLO = flags.DEFINE_string("hlo", None, "file to write the compiled program to")
    command.start("benchmarks/h100.py", lambda settings: main(settings, _HLO.value))
