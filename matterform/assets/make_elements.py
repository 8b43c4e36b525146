"""Writes elements.csv beside this script: `python matterform/assets/make_elements.py`.

Symbols, masses and covalent radii come from ASE (IUPAC 2016; Cordero et al., Dalton Trans. 2008, 2832);
English names, Pauling electronegativities, periods, groups and the radioactive and noble-gas flags from pymatgen.
Radioactive elements are Tc, Pm and everything from Po on; bismuth (half-life 2e19 years) counts as stable.
"""

import csv
import pathlib
import warnings

from ase.data import atomic_masses, chemical_symbols, covalent_radii
from pymatgen.core import Element

COLUMNS = (
    "number",
    "symbol",
    "name",
    "mass_u",
    "covalent_radius_ang",
    "electronegativity",
    "period",
    "group",
    "radioactive",
    "noble_gas",
)
LAST_MEASURED_RADIUS = 96  # Cm; beyond it ASE fills in 2.0, which is no measurement


def element_row(number: int) -> tuple:
    """One line of the table; `nan` where a quantity is not known."""
    element = Element.from_Z(number)
    radius = round(float(covalent_radii[number]), 2) if number <= LAST_MEASURED_RADIUS else "nan"
    return (
        number,
        chemical_symbols[number],
        element.long_name,
        float(atomic_masses[number]),
        radius,
        float(element.X),
        element.row,
        element.group,
        int(element.is_radioactive),
        int(element.is_noble_gas),
    )


def main() -> None:
    """Writes the table; row 0 is padding."""
    warnings.filterwarnings("ignore", message="No Pauling electronegativity")
    path = pathlib.Path(__file__).with_name("elements.csv")
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerow((0, "X", "padding", 0.0, 0.0, 0.0, 0, 0, 0, 0))
        writer.writerows(element_row(number) for number in range(1, 119))


if __name__ == "__main__":
    main()
