"""Models created from settings and data."""

import dataclasses
import logging

import ase
import jax
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from agedi.config import DiffusionConfig, DiffusionOptions, ModelConfig
from agedi.data.dataset import create_dataset
from agedi.diffusion import complete_config, create_diffusion, network, new_model, noiser_name, options_of

SMALL = {"feature_size": 4, "n_blocks": 1, "n_rbf": 3}


@pytest.fixture(autouse=True)
def without_parameters(request, monkeypatch):
    """Spares the drawing of parameters, of which most tests here need none."""
    if "seed" not in request.node.name:
        monkeypatch.setattr("agedi.diffusion.new_model", lambda config, seed: network(config))


@pytest.fixture
def crystals(rng) -> list[ase.Atoms]:
    """Copper and gold in cells of 3 to 4 angstrom, with a property."""
    structures = []
    for i in range(6):
        atoms = bulk("Cu" if i % 2 else "Au", cubic=True, a=3.5 + 0.1 * i)
        atoms.info |= {"gap": 1.0 * i, "size": 10.0 + i, "kind": i % 3}
        structures.append(atoms)
    return structures


def test_names_are_taken_as_users_write_them():
    assert noiser_name("cell_positions") == "CellPositions"
    assert noiser_name("Fractional") == "Fractional"


def test_molecules_shrink_and_crystals_blur_by_default():
    assert create_diffusion("Positions", **SMALL).config.sde == "vp"
    assert create_diffusion(("CellPositions", "Types"), species=(6,), **SMALL).config.sde == "ve"
    with pytest.raises(ValueError, match="sde vp shrinks positions"):
        create_diffusion("CellPositions", sde="vp", **SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noisers": "Fractional"}, "noisers must be among .* got 'Fractional'"),
        ({"noisers": "Positions,CellPositions"}, "only one noiser may move positions"),
        ({"noisers": "ConfinedCellPositions"}, "needs a confinement"),
        (
            {"confinement": (1.0, 2.0, 3.0)},
            r"confinement must be z_min and z_max in angstrom; got \(1\.0, 2\.0, 3\.0\)",
        ),
        ({"confinement": (3.0, 2.0)}, "confinement must be z_min < z_max"),
        ({"conditioning": "gap", "conditioning_type": "vector"}, "conditioning_type must be one of"),
        ({"conditioning": "gap", "conditioning_type": ("scalar", "node")}, "must be one kind, or one for each"),
        ({"reference_energies": "Cu=-3"}, "reference_energies must be auto, none or eV by element"),
        ({"reference_energies": "Xx:-3"}, "reference_energies must be auto, none or eV by element"),
        ({"feature_size": 0}, "feature_size must be positive"),
    ],
)
def test_contradictory_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_diffusion(**{**SMALL, **options})


def test_the_seed_gives_the_parameters():
    one, same, other = (new_model(DiffusionConfig(model=ModelConfig(**SMALL)), seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one.params, same.params)
    assert not np.array_equal(
        *(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(m.params)]) for m in (one, other))
    )


def test_a_network_knows_the_shapes_of_its_parameters():
    config = DiffusionConfig(model=ModelConfig(**SMALL))
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), new_model(config, 0).params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), network(config).params) == expected


def test_crystals_give_species_noise_and_means(crystals):
    dataset = create_dataset(crystals, conditioning="gap,size", extensive=("size",))
    config = create_diffusion(
        "CellPositions", conditioning="gap,size", extensive=("size",), dataset=dataset, **SMALL
    ).config
    assert config.species == (29, 79)
    assert config.sigma_max == pytest.approx(4.0 / 2)  # half the largest spacing
    assert (config.cell, config.pbc) == (None, (True, True, True))
    gap, size = config.conditions
    assert (gap.mean, gap.std) == pytest.approx((2.5, np.std(np.arange(6))))
    assert (gap.extensive, size.extensive) == (False, True)
    # What was given stays.
    assert complete_config(dataclasses.replace(config, sigma_max=7.0), dataset) == dataclasses.replace(
        config, sigma_max=7.0
    )
    assert complete_config(config, create_dataset(crystals[:2], conditioning="gap,size")) == config


def test_repeated_cells_count(crystals):
    dataset = create_dataset(crystals, conditioning="size", extensive=("size",), repeat=3, repeat_epoch=2)
    config = create_diffusion(
        "CellPositions", conditioning="size", extensive=("size",), dataset=dataset, **SMALL
    ).config
    assert config.sigma_max == pytest.approx(3 * 4.0 / 2)
    values = np.concatenate([k**2 * (10.0 + np.arange(6)) for k in (1, 2, 3)])
    assert (config.conditions[0].mean, config.conditions[0].std) == pytest.approx((values.mean(), values.std()))


def test_a_shared_cell_is_noted(crystals):
    cell = create_diffusion(dataset=create_dataset(crystals[:1] * 2), **SMALL).config.cell
    np.testing.assert_allclose(np.reshape(cell, (3, 3)), 3.5 * np.eye(3), atol=1e-5)


def test_molecules_are_blurred_wider_than_they_are(caplog):
    water = molecule("H2O")
    dataset = create_dataset([water])
    config = create_diffusion("Positions", sde="ve", dataset=dataset, **SMALL).config
    centred = water.positions - water.positions.mean(axis=0)
    assert config.sigma_max == pytest.approx(3 * np.sqrt(np.mean(centred**2)), rel=1e-5)
    assert (config.cell, config.pbc) == (None, (False, False, False))
    assert not caplog.messages
    create_diffusion("Positions", sde="ve", cutoff=1.0, dataset=dataset, **SMALL)
    assert "most atoms are farther apart than the cutoff" in caplog.messages[0]
    assert create_diffusion("Positions", dataset=dataset, **SMALL).config.sigma_max is None


def test_slabs_are_blurred_in_their_plane_and_between_their_walls():
    slab = fcc111("Cu", (1, 1, 2), vacuum=6.0, orthogonal=False, periodic=True)
    slab.pbc = (True, True, False)
    dataset = create_dataset([slab], confinement=(5.0, 15.0))
    config = create_diffusion("ConfinedCellPositions", dataset=dataset, **SMALL).config
    assert config.confinement == (5.0, 15.0)
    assert config.sigma_max == pytest.approx(10.0)  # walls 10 apart mirror with a period of 20
    # Without walls: half the height of the surface cell, or three times the spread across the plane.
    height, width = slab.cell.lengths()[0] * np.sqrt(3) / 2, np.std(slab.positions[:, 2])
    config = create_diffusion("CellPositions", dataset=dataset, **SMALL).config
    assert config.sigma_max == pytest.approx(max(height / 2, 3 * width), rel=1e-5)


def test_a_force_field_gets_references_and_a_unit(crystals):
    rng = np.random.default_rng(1)
    rest = rng.normal(0, 0.3, len(crystals))
    references = {29: -3.5, 79: -3.0}
    for atoms, extra in zip(crystals, rest, strict=True):
        energy = sum(references[number] for number in atoms.numbers) + extra * len(atoms)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((len(atoms), 3)))
    dataset = create_dataset(crystals, force_field=True)
    field = create_diffusion(force_field=True, reference_energies="Cu:-3.5,Au:-3", dataset=dataset, **SMALL).config
    assert field.force_field.reference_energies == ((29, -3.5), (79, -3.0))
    assert field.force_field.energy_scale == pytest.approx(np.std(rest), rel=1e-4)
    fitted = create_diffusion(force_field=True, dataset=dataset, **SMALL).config.force_field
    expected = {29: -3.5 + rest[1::2].mean(), 79: -3.0 + rest[::2].mean()}
    assert dict(fitted.reference_energies) == pytest.approx(expected, rel=1e-5)
    none = create_diffusion(force_field=True, reference_energies="none", dataset=dataset, **SMALL).config.force_field
    assert none.reference_energies == ()


def test_classes_beyond_the_table_are_refused(crystals):
    crystals[2].info["kind"] = 200
    dataset = create_dataset(crystals, conditioning="kind", conditioning_type="integer")
    with pytest.raises(ValueError, match=r"classes of kind must lie in 0 ... 199; the data hold 0 to 200"):
        create_diffusion(conditioning="kind", conditioning_type="integer", dataset=dataset, **SMALL)


def test_a_property_without_spread_is_named(crystals, caplog):
    dataset = create_dataset(crystals[:1], conditioning="gap")
    create_diffusion(conditioning="gap", dataset=dataset, **SMALL)
    assert caplog.record_tuples[0][1:] == (
        logging.WARNING,
        "gap is 0 in every structure: nothing can be learned from it",
    )


def test_types_know_the_species_they_draw(crystals):
    config = create_diffusion("Types", dataset=create_dataset(crystals[1::2]), **SMALL).config
    with pytest.raises(ValueError, match=r"samples the species \[29\]; the data also hold \[79\]"):
        complete_config(config, create_dataset(crystals))


def test_cells_that_confined_noise_is_not_made_for_are_refused():
    """The plane of the first two vectors must be the walls' plane, and periodic; the walls must be the model's."""
    config = DiffusionConfig(noisers=("ConfinedCellPositions",), confinement=(2.0, 6.0))

    def data(cell, pbc=(True, True, False), walls=(2.0, 6.0)):
        atoms = ase.Atoms("Cu2", positions=[[0, 0, 3], [1, 1, 5]], cell=cell, pbc=pbc)
        return create_dataset([atoms], confinement=walls)

    flat, tilted = np.diag([4.0, 4.0, 12.0]), np.array([[4.0, 0, 1.0], [0, 4.0, 0], [0, 0, 12.0]])
    assert complete_config(config, data(flat)).sigma_max == pytest.approx(4.0)
    with pytest.raises(ValueError, match=r"structure 0: .*xy plane"):
        complete_config(config, data(tilted))
    with pytest.raises(ValueError, match=r"structure 0: .*pbc"):
        complete_config(config, data(flat, pbc=(False, False, False)))
    with pytest.raises(ValueError, match=r"structure 0 is confined to \[2.5, 6.0\]"):
        complete_config(config, data(flat, walls=(2.5, 6.0)))


def test_the_settings_of_a_model_are_found_again():
    given = {"noisers": ("CellPositions", "Types"), "conditioning": ("gap", "kind"), "force_field": True}
    given |= {"conditioning_type": ("node", "integer"), "noise_schedule": "linear", "smallest_time": 1e-3}
    options = DiffusionOptions(**given, species=(6, 8), sde="ve", **SMALL)
    assert options_of(create_diffusion(**vars(options)).config) == options
