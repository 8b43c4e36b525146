"""Pickles of arrays and optimiser states, read without executing code.

A pickle is a program. This unpickler allows only the few constructors that checkpoints use, and replaces each by a
harmless stand-in: arrays become NumPy arrays, whichever library wrote them, and optax's states stay named tuples. Any
other global raises an error that names it.
"""

import io
import pathlib
import pickle
import re
import struct
import sys
from typing import Any

import jax
import numpy as np
import optax

# Errors that damaged bytes cause: a length or a type is read wrongly, and the next step fails.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, KeyError, IndexError, TypeError, ValueError),
    *(OverflowError, MemoryError, RecursionError, struct.error),
)


def read_pickle(path: pathlib.Path) -> Any:
    """The object in a pickle file of arrays, plain containers and optax states.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or refers to any other global, which the message names.
    """
    content = io.BytesIO(path.read_bytes())
    try:
        tree = _ArrayUnpickler(content).load()
        return jax.tree.map(lambda leaf: leaf.value if isinstance(leaf, _PickledArray) else leaf, tree)
    except _ForbiddenGlobal as error:
        raise ValueError(f"{path}: {error}; nothing was loaded") from error
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: cut short, damaged or not a checkpoint; fetch it again ({reason:.200})") from error


class _ForbiddenGlobal(Exception):
    """A pickle refers to something that no checkpoint needs."""


# The unpickler written in Python: the one in C fills tens of gigabytes if a damaged file gives a large memo index.
class _ArrayUnpickler(pickle._Unpickler):
    """Allows arrays, plain containers and optax states; raises `_ForbiddenGlobal` for every other global."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        state = _optax_state(module, name)
        if state is None:
            raise _ForbiddenGlobal(f"it refers to {module}.{name}, which no checkpoint needs and which could run code")
        return state


def _optax_state(module: str, name: str) -> Any:
    """The named tuple of an optax optimiser state, whose constructor has no side effects; None for anything else."""
    if module.split(".")[0] != "optax":
        return None
    # States have moved between optax's modules; the ones that users name are also in the package itself.
    state = getattr(sys.modules.get(module), name, None) or getattr(optax, name, None)
    is_named_tuple = isinstance(state, type) and issubclass(state, tuple) and hasattr(state, "_fields")
    return state if is_named_tuple else None


class _PickledDtype:
    """Stand-in for numpy.dtype, whose pickles can describe types that read arbitrary memory; plain numbers only."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not re.fullmatch(r"[biuf][1248]", code):
            raise pickle.UnpicklingError(f"arrays of type {code!r}, where numbers were expected")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _PickledArray:
    """Stand-in for an array while the file is read: created empty, its state is set later."""

    value: np.ndarray

    def __init__(self, *_empty_array: Any) -> None: ...

    def __setstate__(self, state: tuple) -> None:
        _version, shape, dtype, fortran, content = state
        self.value = _array_from(content, dtype, shape, "F" if fortran else "C")


def _array_from(content: Any, dtype: _PickledDtype, shape: tuple, order: str, axes: Any = None) -> np.ndarray:
    """numpy's _frombuffer, which writes arrays in C ("C"), Fortran ("F") or, by `axes`, another order ("K")."""
    flat = np.frombuffer(content, dtype.dtype).astype(dtype.dtype.newbyteorder("="))
    return flat.reshape(shape).transpose(axes) if order == "K" else flat.reshape(shape, order=order)  # type: ignore


def _scalar_from(dtype: _PickledDtype, content: bytes) -> Any:
    return _array_from(content, dtype, (), "C")[()]


def _jax_array(_reconstruct: Any, _empty_array: tuple, state: tuple, *_aval: Any) -> _PickledArray:
    """A device array of JAX, pickled as NumPy's constructor and state and, in later versions, the weak type."""
    array = _PickledArray()
    array.__setstate__(state)
    return array


def _latin1(text: str, _encoding: str) -> bytes:
    """Bytes, which pickles of protocol 2 and below store as Latin-1 text."""
    return text.encode("latin1")


# Files written with NumPy 1 contain numpy.core instead of numpy._core; JAX has moved its array module several times.
_ADMITTED = {
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): dict,
    ("jax._src.array", "_reconstruct_array"): _jax_array,
    ("jax._src.device_array", "reconstruct_device_array"): _jax_array,
    ("jaxlib.xla_extension", "reconstruct_device_array"): _jax_array,
} | {
    (f"numpy.{core}.{module}", name): stand_in
    for core in ("core", "_core")
    for module, name, stand_in in (
        ("multiarray", "_reconstruct", _PickledArray),
        ("multiarray", "scalar", _scalar_from),
        ("numeric", "_frombuffer", _array_from),
    )
}
