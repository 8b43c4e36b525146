"""What PyTorch packages change in the process when a model is loaded, which devices there are, numbers of tensors."""

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

# What unpickling raises, after whatever it makes of the bytes of another file.
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
    """Raises ValueError, saying what there is, for a device that this PyTorch does not have."""
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
    """`path`, if it is there; what else could be given, said at once, since packages may turn to the network first.

    Raises:
        ValueError: no path.
        FileNotFoundError: nothing lies there.
    """
    if path is None:
        raise ValueError(f"{package} needs the path of {what}")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {package} needs {what}")
    return path


def to_numpy(tensor: Any) -> np.ndarray:
    """The tensor's numbers in float64, from whatever device and graph."""
    return tensor.detach().cpu().numpy().astype(np.float64)


@contextlib.contextmanager
def unchanged_process() -> Iterator[None]:
    """Undoes what importing a package or loading its model does to all others; silences its prints and warnings.

    Orb sets the default dtype and the precision of products; MACE makes every later `torch.load` trust its file.
    """
    if importlib.util.find_spec("torch") is None:
        yield  # the package will be missing too, and its loader says what to install
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
    """Lets PyTorch, if it is loaded, use that many threads; None leaves it alone."""
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
