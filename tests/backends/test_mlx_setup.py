"""What MLX needs of a machine, each in a process of its own."""

import os
import subprocess
import sys


def test_importing_the_backend_does_not_import_mlx():
    code = "import sys, punie.backends.mlx; sys.exit('mlx' in sys.modules or 'mlx.core' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_openblas_the_user_is_told(tmp_path):
    code = """
from punie.backends import _mlx
assert _mlx.BLAS == "", _mlx.BLAS
_mlx.require_blas()
"""
    program = f"import ctypes\ndef refuse(name, **_):\n raise OSError(name)\nctypes.CDLL = refuse\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "EngineMissing" in done.stderr
    assert "libopenblas0" in done.stderr


def test_without_mlx_or_its_models_the_user_is_told():
    for name in ("mlx", "mlx_lm"):
        hidden = f"import sys; sys.modules[{name!r}] = None; from punie.backends import _mlx; _mlx.require()"
        done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, timeout=60, check=False)
        assert "EngineMissing" in done.stderr
        assert "pip install 'punie[mlx]'" in done.stderr


def test_a_compiler_that_cannot_compile_is_done_without(tmp_path):
    for name in ("g++", "c++", "clang++"):
        (tmp_path / name).write_text('#!/bin/sh\ncase "$*" in *version*) exit 0;; esac\nexit 1\n')
        (tmp_path / name).chmod(0o755)
    code = """
from punie.backends import _mlx
from punie.backends._mlx import mx, nn
_mlx.require()
strange = mx.compile(lambda x: mx.sin(mx.exp(x) * 3.25 - 1.125) + x)
assert abs(strange(mx.array([0.5])).item() + 0.387) < 0.01
"""
    environment = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert not done.returncode, done.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_no_compiler_is_needed(tmp_path):
    code = "from punie.backends._mlx import mx, nn; assert nn.silu(mx.array([2.0, -8.0])).tolist()[0] > 1.7"
    environment = {**os.environ, "PATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
