# SPDX-License-Identifier: Apache-2.0
"""Writes a report, one HTML file: python -m ssl_noisy.report RUN [RUN ...]

RUN is the folder of a finished run or of a sweep. The file shows accuracy,
curves, calibration and labels. For a single run it has a page to review
suspicious labels, which exports a file for --labels_csv.

  python -m ssl_noisy.report runs/first --output=report.html
"""

import dataclasses
import os

from absl import flags

from ssl_noisy import command, files
from ssl_noisy.errors import UserError
from ssl_noisy.reports import collect, page
from ssl_noisy.settings import absolute_path

NAME = "report.html"


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user wants.

    Attributes:
        places: Paths of runs and sweeps.
        output: Path to write.
    """

    places: tuple[str, ...]
    output: str


def define_flags(values):
    """Defines the flags of this command and returns their names."""
    help = f"File to write, .html. Unset: {NAME} in the folder, or here for several folders."
    flags.DEFINE_string("output", None, help, flag_values=values)
    return ["output"]


def read_flags(argv, values):
    """Returns the `Request` of a command line.

    Raises:
        absl.flags.Error, UserError: If it is wrong.
    """
    command.check_flagfiles(argv[1:])
    places = tuple(map(absolute_path, values(argv)[1:]))
    if not places:
        raise UserError("Pass the folder of a run or of a sweep: python -m ssl_noisy.report RUN.")
    repeated = sorted({place for place in places if places.count(place) > 1})
    if repeated:
        raise UserError(f"Each folder must be given once. Received twice: {', '.join(repeated)}.")
    output = values["output"].value
    if output is None:
        output = os.path.join(places[0], NAME) if len(places) == 1 else NAME
    if not output.lower().endswith((".html", ".htm")):
        raise UserError(f"--output must end in .html. Received: --output={output}")
    return Request(places, absolute_path(output))


def main(request):
    page.check_packages()
    collection = collect.collect(request.places)
    data = collect.load_data(collection.runs)
    text = page.render(collection, data, request.output)
    with files.replacing(request.output, "w") as file:
        file.write(text)
    count = len(collection.runs)
    without = "no pictures" if count == 1 else "wrong labels are not marked"
    for run, one in zip(collection.runs, data):
        if one.missing:
            print(f"{run.name}: {without}, because the data cannot be loaded. {one.missing}")
    runs, size = f"{count} run{'' if count == 1 else 's'}", len(text.encode()) / 1e6
    print(f"{request.output}: {runs}, {size:.1f} MB. Open it in a browser.")


if __name__ == "__main__":
    command.start("ssl_noisy.report", main, define_flags=define_flags, read_flags=read_flags)
