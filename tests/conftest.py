# SPDX-License-Identifier: Apache-2.0
"""Lets absltest's `create_tempdir` work under pytest, which does not parse absl's flags."""

from absl import flags

flags.FLAGS.mark_as_parsed()
