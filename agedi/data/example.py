"""One training example of AGeDi."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int

from agedi.data.graph import AnyArray, AtomsGraph


class GraphExample(NamedTuple):
    """A structure with its labels; with a leading axis on every leaf, a batch."""

    graph: AtomsGraph
    conditions: dict[str, AnyArray]  # value of each property that the model is conditioned on
    energy: Float[AnyArray, ""]  # eV, NaN where unknown
    forces: Float[AnyArray, "n 3"]  # eV/Å, NaN where unknown
    diffuse: Bool[AnyArray, ""]  # False: used by the force field loss only
    index: Int[AnyArray, ""]  # row in the data set; seeds the example's noise in validation
