"""Settings of sampling and inpainting, each default once; importing this module loads no JAX."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

from agedi.checks import check_counts
from matterform.config import setting

SAMPLERS = ("em", "pc", "heun", "ddim", "heun_ode", "ffpc")
# Settings that only some samplers use -> these samplers; all other settings are used by every sampler.
READ_BY = {
    "churn": ("heun",),
    "corrector_steps": ("pc", "ffpc"),
    "corrector_snr": ("pc", "ffpc"),
    "save_corrector_frames": ("pc", "ffpc"),
    "mixing_zeta": ("ffpc",),
    "temperature": ("ffpc",),
    "terminal_steps": ("ffpc",),
    "terminal_dynamics": ("ffpc",),
    "terminal_step_size": ("ffpc",),
    "terminal_friction": ("ffpc",),
}


def check_choices(cls: type[Any], values: Mapping[str, Any]) -> None:
    """Checks the values of fields that are one of a few words.

    Raises:
        ValueError: a value is not one of them; the message names the field and its choices.
    """
    for field in dataclasses.fields(cls):
        choices = typing.get_args(field.type) if typing.get_origin(field.type) is Literal else ()
        if choices and field.name in values and values[field.name] not in choices:
            words = " or ".join(choices) if len(choices) == 2 else f"one of {', '.join(choices)}"
            raise ValueError(f"{field.name} must be {words}; got {values[field.name]!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Solver of the reverse process.

    `em`: Euler-Maruyama. `pc`: em, then Langevin corrections (Song et al. 2021, algorithm 2). `heun`: stochastic,
    second order (Karras et al. 2022, algorithm 2). `ddim`: exponential integrator of the probability flow, first
    order (Song, Meng and Ermon 2021). `heun_ode`: Heun's method on the probability flow, second order. `ffpc`: pc
    whose corrections also follow the force field.

    Raises:
        ValueError: a value is out of range, or a setting is changed that the chosen sampler does not read.
    """

    steps: int = 500  # number of solver steps from t = 1 to 0
    sampler: Literal["em", "pc", "heun", "ddim", "heun_ode", "ffpc"] = "em"  # solver of the reverse process
    eps: float = 1e-3  # diffusion time (fraction of the whole) at which the last step starts; it ends at 0
    grid: Literal["uniform", "rho"] = "uniform"  # spacing of steps: uniform in t, or in noise_level^(1 / rho)
    rho: float = 7.0  # exponent of grid rho; larger values put more steps at small noise
    # weight of property guidance: 0 ignores the property, 1: conditional model, above 1: amplified
    guidance_weight: float = 1.0
    churn: float = 20.0  # heun: relative increase of the noise by renewal, summed over all steps
    corrector_steps: int = setting(1, "ffpc_corrector_steps")  # pc, ffpc: number of Langevin corrections per step
    corrector_snr: float = 0.1  # pc, ffpc: signal-to-noise ratio of a correction, which sets its step size
    mixing_zeta: float = setting(1.0, "ffpc_zeta")  # ffpc: exponent of the weight (1 - t)^zeta of forces in corrections
    temperature: float = setting(1.0, "ffpc_temperature")  # ffpc: temperature k_B T of the force field, eV
    terminal_steps: int = setting(0, "ffpc_terminal_steps")  # ffpc: number of steps of force-field dynamics at t = 0
    # ffpc: kind of dynamics at t = 0, Brownian or molecular with a Langevin thermostat
    terminal_dynamics: Literal["overdamped", "langevin_md"] = setting("overdamped", "ffpc_terminal_dynamics")
    # ffpc: step of the dynamics at t = 0, in Å^2/eV, for langevin_md in fs; none: 1e-3 Å^2/eV or 1 fs
    terminal_step_size: float | None = setting(None, "ffpc_terminal_step_size")
    # ffpc: friction of langevin_md, in 1/fs; none: 0.1 per step
    terminal_friction: float | None = setting(None, "ffpc_terminal_friction")
    save_corrector_frames: bool = False  # pc, ffpc: save a frame after every correction too, if trajectories are saved

    def __post_init__(self) -> None:
        check_counts(steps=self.steps)
        check_choices(type(self), vars(self))
        for name in ("rho", "corrector_snr", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        for name in ("churn", "corrector_steps", "terminal_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0; got {getattr(self, name)}")
        for name in ("terminal_step_size", "terminal_friction"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, or none; got {value}")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps must lie between 0 and 1; got {self.eps}")
        self._check_readers()

    def _check_readers(self) -> None:
        changed = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        for name in changed:
            if self.sampler not in READ_BY.get(name, SAMPLERS):
                raise ValueError(f"{name} is for sampler {' or '.join(READ_BY[name])}; the sampler is {self.sampler}")
        if "rho" in changed and self.grid != "rho":
            raise ValueError("rho is for grid rho; the grid is uniform")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForcefieldGuidanceConfig:
    """Guidance of samples by the model's force field, and their relaxation afterwards.

    Raises:
        ValueError: a value is negative.
    """

    guidance: float = setting(0.0, "ff_guidance")  # weight of the forces on the predicted clean structure, 1/eV
    zeta: float = setting(3.0, "ff_zeta")  # exponent of the weight of the forces, which grows as (1 - t)^zeta
    # largest force, in eV/Å, at which the relaxation of a sample stops
    force_threshold: float = setting(0.05, "ff_force_threshold")
    max_extra_steps: int = setting(0, "ff_max_extra_steps")  # largest number of L-BFGS steps after sampling

    def __post_init__(self) -> None:
        for name in ("guidance", "zeta", "max_extra_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"ff_guidance: {name} must be at least 0; got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InpaintConfig:
    """RePaint (Lugmayr et al. 2022): known atoms follow their forward process, the others are sampled around them.

    Raises:
        ValueError: a value is out of range.
    """

    # diffusion time (fraction of the whole) at which inpainting starts; below 1, from the noised reference positions
    t_start: float = 1.0
    n_resample: int = 1  # number of passes over each time step, to harmonise known and sampled atoms
    jump_length: int = 1  # number of substeps per time step

    def __post_init__(self) -> None:
        if not 0 < self.t_start <= 1:
            raise ValueError(f"t_start must lie in (0, 1]; got {self.t_start}")
        for name in ("n_resample", "jump_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Atoms to inpaint: the union of all selectors; without any, a random `fraction` of the free atoms.

    Raises:
        ValueError: a selector is out of range, or `contiguous` is combined with one.
    """

    indices: tuple[int, ...] | None = None  # indices of the selected atoms, from 0; negative ones count from the end
    symbols: tuple[str, ...] | None = None  # select all atoms of these elements
    z_range: tuple[float, float] | None = None  # select all atoms between these two heights, Å
    sphere: tuple[float, float, float, float] | None = None  # select all atoms inside: center x y z, radius, Å
    from_atoms: bool = False  # select the atoms marked by the per-atom array inpaint_mask
    fraction: float = 0.25  # share of the free atoms in a random selection
    contiguous: bool = False  # select random atoms next to each other
    freeze: tuple[int, ...] | Literal["all"] = ()  # atoms held fixed besides FixAtoms: indices, or all unselected ones

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1; got {self.fraction}")
        if self.z_range is not None and not (len(self.z_range) == 2 and self.z_range[0] <= self.z_range[1]):
            raise ValueError(f"z_range must be a lower and an upper height in angstrom; got {self.z_range}")
        if self.sphere is not None and not (len(self.sphere) == 4 and self.sphere[3] > 0):
            raise ValueError(f"sphere must be x, y, z and a positive radius in angstrom; got {self.sphere}")
        if self.contiguous and self.named:
            raise ValueError("contiguous is for a random selection; leave it out where atoms are named")

    @property
    def named(self) -> bool:
        """Whether some selector is given, so that the selection is not random."""
        selectors = (self.indices, self.symbols, self.z_range, self.sphere)
        return self.from_atoms or any(selector is not None for selector in selectors)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Number of samples, their seed, and how they are sampled; for `sample`, `inpaint` and the command line.

    Raises:
        ValueError: a count is not a whole number of at least 1, or the seed is negative.
    """

    num_samples: int = setting(12, "n_samples")  # number of structures to sample; for inpainting, per given structure
    seed: int = 42  # random seed; sample i depends on the seed and i only
    batch_size: int = 64  # number of structures sampled at once; changes speed and memory, not the samples
    save_trajectory: bool = False  # keep all frames from noise to sample
    progress: bool = setting(False, "progress_bar")  # show a progress bar
    sampler: SamplerConfig = SamplerConfig()
    guidance: ForcefieldGuidanceConfig = ForcefieldGuidanceConfig()

    def __post_init__(self) -> None:
        check_counts(num_samples=self.num_samples, seed=self.seed, batch_size=self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReverseConfig:
    """Settings that a compiled reverse process is built for."""

    sampler: SamplerConfig = SamplerConfig()
    guidance: ForcefieldGuidanceConfig = ForcefieldGuidanceConfig()
    inpaint: InpaintConfig | None = None  # settings of inpainting; none: the whole structure is sampled
    constrained: bool = False  # the composition is prescribed
    trajectory: bool = False  # returns all frames
