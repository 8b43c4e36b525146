"""Settings of relaxation; importing this module loads no JAX."""

import dataclasses

MAX_STEP_LIMIT = 1.0  # Å; a longer step leaves what any model has learned
BATCH_SIZE = 64  # structures evaluated at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class LbfgsConfig:
    """L-BFGS; the defaults are those of ASE's LBFGS.

    Raises:
        ValueError: a value is out of range.
    """

    fmax: float = 0.05  # largest force on a free atom at convergence, eV/Å
    steps: int = 200  # largest number of steps
    max_step_size: float = 0.2  # largest displacement of an atom per step, Å
    memory: int = 100  # number of past steps from which the approximate Hessian is built
    alpha: float = 70.0  # initial guess of the curvature, eV/Å^2
    damping: float = 1.0  # factor on every step

    def __post_init__(self) -> None:
        for name in ("fmax", "max_step_size", "alpha", "damping"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.max_step_size > MAX_STEP_LIMIT:
            raise ValueError(f"max_step_size must be at most {MAX_STEP_LIMIT} angstrom; got {self.max_step_size}")
        if self.steps < 0:
            raise ValueError(f"steps must be 0 or more; got {self.steps}")
        if self.memory < 1:
            raise ValueError(f"memory must be at least 1; got {self.memory}")
