# SPDX-License-Identifier: Apache-2.0
"""What a command imports, and what it leaves out."""

import os
import subprocess
import sys

from absl.testing import absltest

from ssl_noisy.imports import absent

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class AbsentTest(absltest.TestCase):
    def test_packages_are_not_there_within_the_block_alone(self):
        here = sys.modules["sys"]
        with self.assertRaisesRegex(ModuleNotFoundError, "colorsys"):
            sys.modules.pop("colorsys", None)
            with absent("colorsys", "sys"):
                self.assertIs(sys.modules["sys"], here)  # it was imported before
                import colorsys
        import colorsys

        self.assertEqual(colorsys.rgb_to_hsv(0, 0, 0), (0, 0, 0))


class CommandTest(absltest.TestCase):
    def test_a_command_imports_no_large_package_before_it_needs_it(self):
        program = (
            "import sys; sys.argv = ['-m']\n"  # what it is while Python looks for the module to run
            "import ssl_noisy.train\n"
            "import keras; keras.saving.serialize_keras_object(keras.layers.Dense(1))\n"
            "print(*{'matplotlib', 'pandas', 'sklearn', 'tensorflow'} & set(sys.modules))\n"
            "keras.ops.add(keras.ops.ones(3), 1)\n"
            "print(ssl_noisy.BetaMixtureModel().fit([0.1, 0.2, 0.8, 0.9]).alphas_.shape)\n"
        )
        folder = self.create_tempdir().full_path
        changes = {"KERAS_BACKEND": "jax", "PYTHONPATH": ROOT, "SSL_NOISY_CACHE": folder}
        changes |= {"JAX_COMPILATION_CACHE_DIR": "", "JAX_ENABLE_COMPILATION_CACHE": "true"}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **changes},
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.splitlines(), ["", "(2,)"])
        self.assertNotEmpty(os.listdir(os.path.join(folder, "xla")))  # programs that JAX compiled


if __name__ == "__main__":
    absltest.main()
