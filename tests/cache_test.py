# SPDX-License-Identifier: Apache-2.0
"""Tests where JAX keeps its programs. `imports_test` has a command that keeps some."""

import os
from unittest import mock

import jax
from absl.testing import absltest

from ssl_noisy import cache

FOLDER = "jax_compilation_cache_dir"
SECONDS = "jax_persistent_cache_min_compile_time_secs"
BYTES = "jax_persistent_cache_min_entry_size_bytes"


class ProgramsTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        for name in (FOLDER, SECONDS, BYTES):
            self.addCleanup(jax.config.update, name, getattr(jax.config, name))
        jax.config.update(FOLDER, None)
        jax.config.update(SECONDS, 1.0)

    def kept_in(self, path):
        with mock.patch.dict(os.environ, SSL_NOISY_CACHE=path):
            cache.keep_programs()
        return getattr(jax.config, FOLDER), getattr(jax.config, SECONDS)

    def test_all_programs_are_kept_in_the_cache(self):
        folder = self.create_tempdir().full_path
        self.assertEqual(self.kept_in(folder), (f"{folder}/xla", 0))
        self.assertEqual(getattr(jax.config, BYTES), -1)

    def test_a_folder_that_is_set_stays(self):
        jax.config.update(FOLDER, "/mine")
        self.assertEqual(self.kept_in(self.create_tempdir().full_path), ("/mine", 1))

    def test_without_a_folder_to_write_to_jax_is_left_alone(self):
        self.assertEqual(self.kept_in(self.create_tempfile().full_path), (None, 1))
        with mock.patch.object(os, "access", return_value=False):
            self.assertEqual(self.kept_in(self.create_tempdir().full_path), (None, 1))


if __name__ == "__main__":
    absltest.main()
