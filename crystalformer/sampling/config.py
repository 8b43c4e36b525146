"""Settings of sampling and of refinement by Markov chain Monte Carlo; this module imports no JAX."""

import dataclasses

from matterform.config import setting

TEMPERATURES = 1e-6, 1e6  # outside, float32 overflows or forbidden classes get a probability
SMALLEST_WIDTH = 1e-6  # rad; a smaller shift is lost in float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings of sampling (docs/formulas/crystalformer.md, eqs. 13 and 14)."""

    temperature: float = 1.0  # temperature of all distributions; below 1 sharpens them, above 1 flattens them
    T1: float | None = None  # temperature of the first site's element; by default temperature
    top_p: float = 1.0  # sample only the likeliest classes that together have this probability
    # Number of crystals sampled at a time; by default as many as fit in 1 GiB of cache per device.
    batch_size: int | None = setting(None, "chunk_size", "batchsize")

    def __post_init__(self) -> None:
        check_temperature("temperature", self.temperature)
        if self.T1 is not None:
            check_temperature("T1", self.T1)
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must lie in [0, 1]; got {self.top_p}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class McmcConfig:
    """Settings of the refinement of sampled crystals (docs/formulas/crystalformer.md, eqs. 18 and 19)."""

    # Sweeps of Markov chain Monte Carlo over all sites after sampling; 0 for none.
    mcmc_sweeps: int = setting(0, "mcmc", "nsweeps", "sweeps")
    # Width of the coordinate shifts of MCMC, as an angle 2 pi x (rad).
    mcmc_width: float = setting(0.1, "mc_width", "width")

    def __post_init__(self) -> None:
        if self.mcmc_sweeps < 0:
            raise ValueError(f"mcmc_sweeps must be a number of sweeps, 0 for none; got {self.mcmc_sweeps}")
        if not self.mcmc_width >= SMALLEST_WIDTH:
            raise ValueError(
                f"mcmc_width must be at least {SMALLEST_WIDTH} rad, which float32 can resolve; got {self.mcmc_width}"
            )


def check_temperature(name: str, value: float) -> None:
    """Raises a ValueError that begins with `name` if a temperature is outside `TEMPERATURES`."""
    coldest, hottest = TEMPERATURES
    if not coldest <= value <= hottest:
        raise ValueError(f"{name} must lie in {coldest}..{hottest}; got {value}")
