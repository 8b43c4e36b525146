"""AtomFormer as an ASE calculator. This module imports ASE; `atomformer.Calculator` loads it when first used."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from atomformer.checkpoint.published import Pretrained, from_pretrained
from atomformer.data.examples import pad_edges
from atomformer.data.inputs import input_row, prepare_structure, reference_energy
from atomformer.data.structure import Structure
from atomformer.network.heads import Outputs
from atomformer.network.parameters import fold_params
from atomformer.prediction.batching import grown_capacity
from atomformer.prediction.predict import gives_forces

if TYPE_CHECKING:
    import ase


class Calculator(AseCalculator):
    """Energies (eV), forces (eV/Å) and, of conservative periodic models, stress (eV/Å³) of one structure at a time.

    Forces are those of the model: only conservative ones are derivatives of its energy. The network is compiled for
    each number of atoms and, with explicit images, again when the number of edges grows by a quarter.
    """

    def __init__(self, model: Pretrained | str | os.PathLike[str]) -> None:
        """Takes a model, or a source for `from_pretrained`.

        Raises:
            ValueError: the model predicts neither energies nor forces.
        """
        super().__init__()
        model = model if isinstance(model, Pretrained) else from_pretrained(model)
        self.config = model.config
        has_energy, has_forces = self.config.energy_head is not None, gives_forces(self.config)
        if not has_energy and not has_forces:
            raise ValueError(f"a calculator needs energies or forces; the model has {', '.join(model.config.heads)}")
        has_stress = self.config.conservative and self.config.periodic != "none"
        self.implemented_properties = (
            ["energy", "free_energy"] * has_energy + ["forces"] * has_forces + ["stress"] * has_stress
        )
        self._params = jax.tree.map(jax.device_put, fold_params(model.params, model.config))
        self._apply = jax.jit(lambda params, x: model.apply(params, None, x)._replace(hidden=None))
        self._capacities: dict[int, int] = {}  # edges, by number of atoms

    def calculate(
        self,
        atoms: "ase.Atoms | None" = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fills `results` with energy (eV), forces (eV/Å) and stress (eV/Å³), as far as the model predicts them.

        The stress needs three periodic directions.

        Raises:
            ValueError: a position is not finite, two atoms are at the same place, or an element has no reference
                energy.
        """
        super().calculate(atoms, properties, system_changes)
        row = input_row(self.atoms, self.config)
        structure = prepare_structure(row, self.config)
        outputs: Outputs = jax.device_get(self._apply(self._params, self._with_padded_edges(structure)))
        self.results = {}
        if self.config.energy_head is not None:
            energy = float(getattr(outputs, self.config.energy_head)) + reference_energy(row["input_ids"], self.config)
            self.results |= {"energy": energy, "free_energy": energy}
        if outputs.forces is not None:
            self.results["forces"] = outputs.forces.astype(float)
        if outputs.stress is not None and structure.pbc is not None and structure.pbc.all():
            self.results["stress"] = full_3x3_to_voigt_6_stress(outputs.stress.astype(float))

    def _with_padded_edges(self, structure: Structure) -> Structure:
        """The structure with padded edges, so that a few more edges do not change the shapes."""
        if structure.edges is None:
            return structure
        n, needed = len(structure.tokens), len(structure.edges.first)
        capacity = self._capacities[n] = grown_capacity(self._capacities.get(n, int(1.1 * needed) + 1), needed)
        padded = pad_edges([structure.edges], capacity)
        return structure._replace(edges=jax.tree.map(lambda column: column[0], padded))
