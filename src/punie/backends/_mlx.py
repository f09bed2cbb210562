"""MLX, imported after the libraries that make it usable: import `mx` and `nn` from here and from nowhere else.

On Linux the CPU build of MLX links the reference BLAS; an OpenBLAS that is already loaded takes its place and makes it
a hundred times faster.
"""

import ctypes
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from punie.errors import EngineMissing

_BLAS = ("libopenblas.so.0", "libopenblas.so", "libmkl_rt.so.2")


def _preload_blas() -> str:
    """Load the first BLAS there is so that MLX's symbols resolve to it; returns its name, "" if there is none."""
    if "avx512bw" in _cpu_flags():
        # OpenBLAS takes newer processors than it knows for AVX2 ones and runs at half their speed.
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    for name in _BLAS:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return name
    return ""


def _cpu_flags() -> frozenset[str]:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


if sys.platform == "linux" and "mlx.core" in sys.modules:
    raise ImportError("punie.backends._mlx must be imported before mlx, or MLX runs on the reference BLAS")

BLAS = _preload_blas() if sys.platform == "linux" else "Accelerate"

try:
    import mlx.core as mx
    from mlx import nn, optimizers
except ImportError as error:
    raise EngineMissing(f"MLX cannot be imported ({error}).", "Install it: pip install 'punie[mlx]'") from error

ON_GPU = mx.default_device() != mx.Device(mx.cpu)


def require() -> None:
    """Make sure that models can be run here. Raises EngineMissing that says what to install."""
    require_blas()
    if find_spec("mlx_lm") is None:
        raise EngineMissing("MLX is here, but not mlx-lm, which has the models.", "pip install 'punie[mlx]'")
    if not ON_GPU:
        _require_compiler()


def _require_compiler() -> None:
    """Do without compiled functions where the C++ compiler does not work. Where there is none MLX does so by itself."""
    try:
        mx.eval(nn.silu(mx.array([0.5])))
    except RuntimeError:
        mx.disable_compile()


def require_blas() -> None:
    """Raise EngineMissing where the CPU would be left with the reference BLAS."""
    if not ON_GPU and not BLAS:
        raise EngineMissing(
            "MLX on this CPU needs OpenBLAS; without it one answer takes minutes.",
            "Install it (Debian: apt install libopenblas0), or use the llama.cpp engine: --model local",
        )


__all__ = ["BLAS", "ON_GPU", "mx", "nn", "optimizers", "require", "require_blas"]
