# SPDX-License-Identifier: Apache-2.0
"""Where decoded data and, on JAX, compiled programs are kept."""

import os
import tempfile


def folder(path=None):
    """Returns the folder of the cache: `path`, else `SSL_NOISY_CACHE`, else one at home."""
    home = os.path.expanduser("~")  # stays "~" without HOME and an entry in the user database
    home = tempfile.gettempdir() if home == "~" else home
    return path or os.environ.get("SSL_NOISY_CACHE") or f"{home}/.cache/ssl_noisy"


def keep_programs():
    """Lets JAX keep what it compiles in the folder `xla` of the cache, unless a folder is set.

    A run on the digits compiles 270 programs: 42 of its 61 CPU seconds, which the next one saves.
    JAX recognizes a program by its operations, the options and version of the compiler, and the
    devices. Its variables, such as `JAX_ENABLE_COMPILATION_CACHE=false`, remain in force.
    """
    import jax

    path = os.path.join(folder(), "xla")
    if jax.config.jax_compilation_cache_dir:
        return
    try:
        os.makedirs(path, exist_ok=True)
    except OSError:
        return
    if os.access(path, os.W_OK):  # otherwise JAX would warn about each program
        jax.config.update("jax_compilation_cache_dir", path)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
