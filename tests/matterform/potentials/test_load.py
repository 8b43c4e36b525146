"""Files and folders that hold no model."""

import pytest

from matterform.potentials.config import PotentialConfig, PropertyConfig
from matterform.potentials.load import load_potential, load_property


@pytest.mark.parametrize("model", ["chgnet", "orb", "mace"])
@pytest.mark.parametrize("content", [b"", b"energies of the elements\n", b"gxyz\n", b"a", b"\x80\x02}q\x00."])
def test_a_file_of_something_else_is_one_line_that_names_it(model, content, tmp_path):
    pytest.importorskip({"orb": "orb_models"}.get(model, model))
    path = tmp_path / "junk.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"junk.txt (is not a checkpoint of|holds no MACE).*: \w") as caught:
        load_potential(PotentialConfig(mlff_model=model, mlff_path=path))
    assert "weights_only" not in str(caught.value)


def test_a_property_needs_its_folder():
    pytest.importorskip("matgl")
    with pytest.raises(ValueError, match="needs the path of"):
        load_property(PropertyConfig())
