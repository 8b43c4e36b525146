"""Writes element_features.csv beside this script: `python atomformer/assets/make_element_features.py`.

Only this script needs `pip install mendeleev`. Masses (ASE, IUPAC 2016), covalent radii (Cordero et al.,
2008), Pauling electronegativities and periods come from matterform.elements; groups (none for Ce-Lu and Th-Lr), first
ionisation energies, densities (predicted from Fm on), melting and boiling points, counts of known isotopes and specific
heats from mendeleev 1.3. Where mendeleev has no melting or boiling point, or one for each allotrope, pymatgen's is
taken. Neutrons are those of the rounded mass. Valence electrons are given for the main groups only, as in the original.
"""

import csv
import math
import pathlib
import warnings

from mendeleev import element
from mendeleev.models import Element as Record
from pymatgen.core import Element

from matterform.elements import element_table

COLUMNS = (
    "atomic_number",
    "mass_u",
    "neutrons",
    "protons",
    "electrons",
    "period",
    "group",
    "covalent_radius_ang",
    "electronegativity",
    "first_ionization_energy_ev",
    "density_g_per_cm3",
    "melting_point_k",
    "boiling_point_k",
    "isotopes",
    "specific_heat_j_per_g_k",
    "shells",
    "valence_electrons",
)


def valence_electrons(number: int, group: float) -> float:
    """Electrons of the outer shell; `nan` outside groups 1, 2 and 13 to 18."""
    if number == 2:
        return 2
    if group <= 2:
        return group
    return group - 10 if group >= 13 else math.nan


def feature_row(number: int, record: Record) -> tuple[str, ...]:
    """The 17 features of one element, six digits each; `nan` where a quantity is not known."""
    table, other = element_table(), Element.from_Z(number)
    group = record.group_id or math.nan
    period = int(table.period[number])
    values = (
        number,
        table.mass_u[number],
        round(float(table.mass_u[number])) - number,
        number,
        number,
        period,
        group,
        table.covalent_radius_ang[number],
        table.electronegativity[number],
        record.ionenergies.get(1),
        record.density,
        other.melting_point if record.melting_point is None else record.melting_point,
        other.boiling_point if record.boiling_point is None else record.boiling_point,
        len(record.isotopes),
        record.specific_heat_capacity,
        period,
        valence_electrons(number, group),
    )
    return tuple("nan" if value is None else f"{value:.6g}" for value in values)


def main() -> None:
    """Writes the table, one line per element."""
    warnings.filterwarnings("ignore", message=".*multiple allotropes")
    warnings.filterwarnings("ignore", message="No data available for")
    path = pathlib.Path(__file__).with_name("element_features.csv")
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        records = element(list(range(1, 119)))
        writer.writerows(feature_row(number, record) for number, record in enumerate(records, start=1))


if __name__ == "__main__":
    main()
