# SPDX-License-Identifier: Apache-2.0
"""Counts the kernels of a program that XLA compiled for a GPU, and the bytes that they move."""

import collections
import math
import re

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
