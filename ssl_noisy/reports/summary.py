# SPDX-License-Identifier: Apache-2.0
"""The summary of a sweep as people read it: in percent, without columns that are empty."""

_BEGINS = "begins_with"
_MOMENTS = {"protocol", "mean", "std", "low", "high", "n"}


def tables(rows, protocols):
    """Returns the tables to show of a `summary.csv`, one for each beginning of the runs.

    Args:
        rows, protocols: As for `table`.

    Returns:
        A list of pairs: what the runs begin with, empty if it is the same for all, and a table.
    """
    header, *lines = rows
    if header[:1] != [_BEGINS]:
        return [("", table(rows, protocols))]
    groups = {}
    for beginning, *line in lines:
        groups.setdefault(beginning, []).append(line)
    return [(name, table([header[1:], *own], protocols)) for name, own in groups.items()]


def table(rows, protocols):
    """Returns the table to show of a `summary.csv`.

    Args:
        rows: List of lists of strings, the rows of the file, the header first.
        protocols: Dict from the name of a protocol in the file to that which people see.

    Returns:
        Likewise. A file with other columns than those of a sweep stays as it is.
    """
    header, *rows = rows
    if not _MOMENTS <= set(header):
        return [header, *rows]
    lines = [dict(zip(header, row)) for row in rows]
    flags = header[: header.index("protocol")]
    columns = {flag.replace("_", " "): [line[flag] for line in lines] for flag in flags}
    columns["protocol"] = [protocols.get(line["protocol"], line["protocol"]) for line in lines]
    columns["mean ± std, %"] = [_mean(line) for line in lines]
    columns["95 % interval"] = [_interval(line, "") for line in lines]
    columns["runs"] = [line["n"] for line in lines]
    for name in ("failed", "missing"):
        counts = [line.get(name, "") for line in lines]
        if set(counts) - {"", "0"}:
            columns[name] = counts
    if any(line.get("difference_mean") for line in lines):
        columns["difference"] = [_percent(line, "difference_mean", "+.2f") for line in lines]
        columns["its 95 % interval"] = [_interval(line, "difference_") for line in lines]
        columns["pairs"] = [line["difference_mean"] and line["difference_n"] for line in lines]
    return [list(columns), *map(list, zip(*columns.values()))]


def _mean(line):
    mean, std = _percent(line, "mean"), _percent(line, "std")
    return f"{mean} ± {std}" if std else mean


def _interval(line, prefix):
    low, high = _percent(line, f"{prefix}low"), _percent(line, f"{prefix}high")
    return f"{low} to {high}" if low and high else ""


def _percent(line, name, form=".2f"):
    """Returns a fraction in percent; text that is no number stays as it is."""
    cell = line.get(name, "")
    try:
        return format(100 * float(cell), form)
    except ValueError:
        return cell
