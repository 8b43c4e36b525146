"""The benchmark's two ways to a reward give the same numbers, so that only their cost is compared."""

import numpy as np
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.computed_entries import ComputedEntry

from benchmarks.cases.reward_epoch import our_reward, pack_both, plain_reward
from crystalformer.data.convert import from_structures
from matterform.potentials.base import Potential, Prediction, collect_predictions

ENERGIES = {"Fe": -8.0, "Mn": -9.0, "O": -5.0, "F": -2.0, "Na": -1.3, "S": -4.0}


def energy(structure: Structure) -> float:
    """A made-up total energy (eV) below that of the elements, lower where atoms are dense."""
    return sum(ENERGIES[site.specie.symbol] for site in structure) - 20 * len(structure) ** 2 / structure.volume


def test_both_ways_give_the_same_energies_above_the_hull():
    ions = [("Fe", "O"), ("Mn", "F"), ("Na", "S")]
    structures = [
        Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.3 + 0.2 * i), pair, [[0] * 3, [0.5] * 3])
        for i, pair in enumerate(ions)
    ]
    # Elements in turn, as no POSCAR has them.
    structures.append(Structure(Lattice.cubic(6), ["Fe", "O", "Mn", "O", "Fe"], np.linspace(0, 0.8, 15).reshape(5, 3)))
    crystals, refused = from_structures(structures)
    assert not refused
    computed = [ComputedEntry(Composition(symbol), value) for symbol, value in ENERGIES.items()]
    computed += [ComputedEntry(Composition(formula), value) for formula, value in (("FeO", -17.0), ("Fe2O3", -40.0))]
    entries, plain_hull = pack_both(computed)
    potential = Potential(
        "made up",
        lambda given, wanted: collect_predictions([Prediction(energy(s)) for s in given], [""] * len(given)),
        corrected=True,
    )
    ours, plain = our_reward(crystals, potential, entries), plain_reward(crystals, energy, plain_hull, primitive=False)
    assert np.isfinite(ours.values).all()
    assert len(set(np.round(ours.values, 3))) == len(structures)
    np.testing.assert_allclose(plain.values, ours.values, atol=1e-8)
    assert ours.seconds.keys() == plain.seconds.keys() == {"building", "energy", "corrections", "hull"}
