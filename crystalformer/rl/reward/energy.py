"""Rewards from a potential: energy above the convex hull, and forces with stress (docs/formulas/reinforcement.md)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from crystalformer.rl.config import RewardConfig
from crystalformer.rl.reward.base import KNOWN_SYSTEM, Reward, Scores, make_scores
from matterform.potentials.base import Potential
from matterform.stability.above_hull import above_hull, check_references
from matterform.stability.hull import Hull
from matterform.stability.references import References

if TYPE_CHECKING:
    import pymatgen.core

MIN_COMPONENT, MAX_COMPONENT = 1e-2, 1e2  # bounds of the components of forces (eV/Å) and stress (eV/Å³)
VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))  # xx, yy, zz, yz, xz, xy of a 3 x 3 matrix


def ehull_reward(
    potential: Potential,
    hull: Hull,
    references: References | None = None,
    relax_steps: int = RewardConfig.relax_steps,
    clip: float = RewardConfig.reward_clip,
) -> Reward:
    """Minus the energy above the convex hull in eV/atom, clipped to [-clip, clip] (CrystalFormer-RL, arXiv:2504.02367).

    Args:
        references: energies of the elements in the potential; required for a hull of formation energies, and only
            allowed for such a hull.
        relax_steps: relaxation steps before the energy is taken; 0 scores the structures as they are.

    Raises:
        ValueError: the energies of the potential and of the hull cannot be compared.
    """
    check_references(hull, references, potential)

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        found = above_hull(structures, potential, hull, references=references, relax_steps=relax_steps)
        details = {
            "e_above_hull": found.e_above_hull,
            "energy_per_atom": found.energy_per_atom,
            KNOWN_SYSTEM: np.where(np.isnan(found.e_above_hull), np.nan, found.known_system),
        }
        values = np.clip(-found.e_above_hull, -clip, clip)
        if found.relaxed is None:
            return make_scores(values, found.problems, -clip, details)
        ends = zip(found.relaxed.structures, found.problems, strict=True)
        relaxed = [None if problem else structure for structure, problem in ends]
        return make_scores(values, found.problems, -clip, details, relaxed)

    return Reward("ehull", score, -clip)


def force_reward(potential: Potential, stress_weight: float = RewardConfig.stress_weight) -> Reward:
    """-log(mean |F| + stress_weight * mean |stress|), which is large near a minimum of the energy.

    The means are over the Cartesian components of all forces (eV/Å) and over the six components of the stress (eV/Å³);
    absolute values are clipped to [1e-2, 1e2] before averaging.
    """
    worst = -float(np.log(MAX_COMPONENT * (1 + stress_weight)))
    quantity = "stress" if stress_weight else "forces"

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        predictions = potential.predict(structures, quantity)
        missing = np.full((1, 3), np.nan)
        force = np.array([_mean_component(missing if forces is None else forces) for forces in predictions.forces])
        details = {"mean_force": force}
        total = force
        if stress_weight:
            details["mean_stress"] = np.array([_mean_component(stress[VOIGT]) for stress in predictions.stress])
            total = force + stress_weight * details["mean_stress"]
        return make_scores(-np.log(total), predictions.problems, worst, details)

    return Reward("force", score, worst)


def _mean_component(components: Float[np.ndarray, "..."]) -> float:
    return float(np.mean(np.clip(np.abs(components), MIN_COMPONENT, MAX_COMPONENT)))
