import functools
import pathlib
import sys

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matterform.potentials.orb import load_orb, orb_potential

pretrained = pytest.importorskip("orb_models.forcefield.pretrained")
torch = pytest.importorskip("torch")
requests = pytest.importorskip("requests")

BUCKET = "https://orbitalmaterials-public-models.s3.us-west-1.amazonaws.com/forcefields"
KINDS = ("direct", "conservative")
SMALL = {"latent_dim": 16, "base_mlp_hidden_dim": 32, "head_mlp_hidden_dim": 16, "num_message_passing_steps": 2}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Version 3 at a thousandth of its size; version 2's widths are fixed, so it gets one step."""
    for kind in KINDS:
        name = f"orb_v3_{kind}_architecture"
        monkeypatch.setattr(pretrained, name, functools.partial(getattr(pretrained, name), **SMALL))
    two = pretrained.orb_v2_architecture
    one_step = lambda num_message_passing_steps=1, **settings: two(1, **settings)  # noqa: E731
    monkeypatch.setattr(pretrained, "orb_v2_architecture", one_step)


def random_model(architecture: str):
    from orb_models.forcefield.atomic_system import SystemConfig

    torch.manual_seed(0)
    model = getattr(pretrained, f"{architecture}_architecture")(device="cpu", system_config=SystemConfig(6.0, 120))
    return model.eval()


@pytest.fixture
def checkpoints(tmp_path):
    """Paths of random weights by architecture."""
    paths = {name: tmp_path / f"{name}.ckpt" for name in ("orb_v2", "orb_v3_direct", "orb_v3_conservative")}
    for name, path in paths.items():
        torch.save(random_model(name).state_dict(), path)
    return paths


@pytest.mark.parametrize("kind", KINDS)
def test_obeys_the_laws(kind, crystals, impossible, laws):
    lone = Structure(Lattice.cubic(20), ["Na"], [[0, 0, 0]])
    oganesson = Structure(Lattice.cubic(4), ["Og"], [[0, 0, 0]])
    # In double precision: the forces of random weights are too small for differences of float32 energies.
    potential = orb_potential(random_model(f"orb_v3_{kind}").double())
    laws(potential, crystals, impossible, {"isolated": lone, "Z = 118": oganesson}, conservative=kind == "conservative")


@pytest.mark.parametrize("architecture", ["orb_v2", "orb_v3_direct", "orb_v3_conservative"])
def test_equals_the_package_s_calculator(architecture, crystals):
    import ase
    from orb_models.forcefield.calculator import ORBCalculator

    model = random_model(architecture)
    ours = orb_potential(model).predict(crystals, "stress")
    only = orb_potential(model).predict(crystals, "energy").energy
    np.testing.assert_allclose(only, ours.energy, rtol=1e-6)
    for index, crystal in enumerate(crystals):
        atoms = ase.Atoms(crystal.atomic_numbers, crystal.cart_coords, cell=crystal.lattice.matrix, pbc=True)
        atoms.calc = ORBCalculator(model, device="cpu")
        assert ours.energy[index] == pytest.approx(atoms.get_potential_energy(), rel=1e-5)
        np.testing.assert_allclose(ours.forces[index], atoms.get_forces(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(ours.stress[index], atoms.get_stress(voigt=False), rtol=1e-3, atol=1e-5)


def test_a_checkpoint_gives_its_own_energies(checkpoints, crystals):
    for name, variant in (("orb_v2", None), ("orb_v3_direct", "orb-v3-direct-inf-omat")):
        loaded = load_orb(checkpoints[name], variant)
        crystal = crystals[:1]
        neighbors = 20 if variant is None else 120
        model = random_model(name)
        model.system_config.max_num_neighbors = neighbors
        expected = orb_potential(model).predict(crystal, "energy").energy
        np.testing.assert_allclose(loaded.predict(crystal, "energy").energy, expected, rtol=1e-6)
        assert not loaded.corrected


def test_the_package_fetches_weights_only_when_told_to(checkpoints, crystals, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(pretrained, "cached_path", lambda url: asked.append(url) or checkpoints["orb_v2"])
    fetched = load_orb(pathlib.Path("download"))
    assert asked == [f"{BUCKET}/orb-v2-20241011.ckpt"]
    expected = load_orb(checkpoints["orb_v2"]).predict(crystals, "energy").energy
    np.testing.assert_array_equal(fetched.predict(crystals, "energy").energy, expected)
    assert fetched.name == "orb_v2 orb-v2-20241011.ckpt"  # as if it lay here under its own name
    pathlib.Path("download").write_text("no weights")
    with pytest.raises(ValueError, match=r"^download is not a checkpoint of orb_v2"):
        load_orb(pathlib.Path("download"))


def test_a_failing_download_is_one_line_that_says_what_to_fetch(monkeypatch, tmp_path):
    def offline(url):
        raise requests.exceptions.ConnectionError("name resolution\nfailed")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "cached_path", offline)
    with pytest.raises(OSError, match=rf"could not fetch {BUCKET}/orb-d3-v2-20241011.ckpt: get .* \(name .* failed\)$"):
        load_orb(pathlib.Path("download"), "orb_d3_v2")


@pytest.mark.parametrize(
    ("file", "variant"),
    [
        ("orb_v2", "orb_v3_direct_20_omat"),
        ("orb_v2", "orb_v3_conservative_20_omat"),
        ("orb_v3_direct", "orb_v2"),
        ("orb_v3_direct", "orb_v3_conservative_inf_mpa"),  # the package loads these two and says nothing
        ("orb_v3_conservative", "orb_v3_direct_20_mpa"),
    ],
)
def test_weights_of_another_architecture_are_one_clear_line(file, variant, checkpoints):
    with pytest.raises(ValueError, match=f"{file}.ckpt is not a checkpoint of {variant}") as caught:
        load_orb(checkpoints[file], variant)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_is_no_checkpoint_is_said(tmp_path):
    path = tmp_path / "text.ckpt"
    path.write_text("no weights")
    with pytest.raises(ValueError, match="is not a checkpoint of orb_v2"):
        load_orb(path)
    for content, reason in (([1, 2], "a list that is not a state dict"), (torch.nn.Linear(2, 2), "more than weights")):
        torch.save(content, path)
        with pytest.raises(ValueError, match=f"is not a checkpoint of orb_v2: it holds {reason}"):
            load_orb(path)
    with pytest.raises(ValueError, match="no architecture of Orb is called 'orb_v9'; there is orb_v2, "):
        load_orb(path, "orb_v9")


def test_loading_leaves_the_process_as_it_was(checkpoints, crystals):
    former = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("highest")
        potential = load_orb(checkpoints["orb_v3_direct"], "orb_v3_direct_20_omat")
        assert (torch.get_default_dtype(), torch.get_float32_matmul_precision()) == (torch.float64, "highest")
        in_double = potential.predict(crystals, "stress")
    finally:
        torch.set_default_dtype(former[0])
        torch.set_float32_matmul_precision(former[1])
    np.testing.assert_allclose(in_double.energy, potential.predict(crystals, "stress").energy, rtol=1e-6)


def test_missing_package_is_explained(monkeypatch, checkpoints):
    monkeypatch.setitem(sys.modules, "orb_models.forcefield", None)
    with pytest.raises(ImportError, match=r"pip install 'matterform\[orb\]'"):
        load_orb(checkpoints["orb_v2"])
