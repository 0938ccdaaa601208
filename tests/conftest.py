# SPDX-License-Identifier: Apache-2.0
"""Lets absltest's `create_tempdir` work under pytest, puts the longest tests first, saves time.

JAX sees four devices, for the tests of several devices; all others use the first one.
"""

import gc
import os

from absl import flags

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
flags.FLAGS.mark_as_parsed()  # pytest does not parse them
gc.disable()
# The commands that tests start on JAX keep no programs at home. `.ci/run` has a folder for them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


def pytest_collection_modifyitems(items):
    # Those that kill processes take a minute or two each, one process at a time. If one of them
    # came last, the other worker would wait for it.
    items.sort(key=lambda item: "killed" not in item.name)
    # As in a command: the collector leaves alone what the imports made.
    gc.freeze()
    gc.enable()
