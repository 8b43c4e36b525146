"""State of PyTorch in this process: devices, threads, and the settings that loading a model changes."""

import contextlib
import importlib.util
import io
import os
import pathlib
import pickle
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

# Exceptions of unpickling a damaged file.
UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    ImportError,
    AttributeError,
)
TRUST_ALL_FILES = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def check_device(device: str) -> None:
    """Checks that PyTorch has a device.

    Raises:
        ValueError: it does not exist; the message lists the available devices.
    """
    import torch

    available = ["cpu"]
    if torch.cuda.is_available():
        available += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    if device not in available:
        build = "" if torch.backends.cuda.is_built() else f" (PyTorch {torch.__version__} is built without CUDA)"
        raise ValueError(f"no device {device!r} for PyTorch here; there is {', '.join(available)}{build}")


def check_path(package: str, path: pathlib.Path | None, what: str) -> pathlib.Path:
    """`path`, checked before a package is imported, because packages may try to download weights.

    Raises:
        ValueError: `path` is None.
        FileNotFoundError: the path does not exist.
    """
    if path is None:
        raise ValueError(f"{package} needs the path of {what}")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {package} needs {what}")
    return path


def to_numpy(tensor: Any) -> np.ndarray:
    """Copies a tensor from any device, with or without gradient, to a float64 array."""
    return tensor.detach().cpu().numpy().astype(np.float64)


@contextlib.contextmanager
def unchanged_process() -> Iterator[None]:
    """Restores global settings that importing a package or loading a model changes; silences its output and warnings.

    For example, Orb sets the default dtype and the precision of matrix products, and MACE makes all later `torch.load`
    calls trust their files.
    """
    if importlib.util.find_spec("torch") is None:
        yield  # the package is missing as well, and its loader raises the error
        return
    import torch

    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    trust = os.environ.get(TRUST_ALL_FILES)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        os.environ.pop(TRUST_ALL_FILES, None)
        if trust is not None:
            os.environ[TRUST_ALL_FILES] = trust


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Sets the number of threads of PyTorch, if it is loaded, inside the block; None changes nothing."""
    torch = sys.modules.get("torch")
    if threads is None or torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
