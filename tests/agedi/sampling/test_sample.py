"""Samples: what is fixed, what is drawn, seeds, chunks, compilations, and what is refused."""

import logging

import ase
import ase.build
import ase.data
import jax
import numpy as np
import pytest
from ase.constraints import FixAtoms

import agedi
from agedi.config import ConditionConfig
from agedi.data import buckets as chunks
from agedi.sampling import sample as sampling
from agedi.sampling.config import SAMPLERS, SampleConfig, SamplerConfig
from agedi.sampling.request import SampleRequest

CELL = [5.0, 5.0, 7.0]
QUICK = {"steps": 6, "cell": CELL}

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def crystals(tiny_diffusion):
    return tiny_diffusion("CellPositions")


@pytest.fixture(scope="module")
def typed(tiny_diffusion):
    return tiny_diffusion("CellPositions", "Types")


@pytest.fixture(scope="module")
def slabs(tiny_diffusion):
    return tiny_diffusion("ConfinedCellPositions", force_field=True, confinement=(8.0, 11.0), pbc=(True, True, False))


def surface() -> ase.Atoms:
    atoms = ase.build.fcc111("Cu", (2, 2, 1), vacuum=8.0)
    atoms.info["name"] = "template"
    return atoms


def positions_of(structures):
    return np.array([atoms.positions for atoms in structures])


def test_a_sample_has_what_was_asked_for(crystals):
    atoms, other = agedi.sample(crystals, formula="Cu2OH", n_samples=2, **QUICK)
    assert atoms.get_chemical_symbols() == ["Cu", "Cu", "O", "H"]
    np.testing.assert_array_equal(atoms.cell, np.diag(CELL))
    assert atoms.pbc.all()
    fractional = atoms.get_scaled_positions(wrap=False)
    assert ((fractional >= -1e-6) & (fractional <= 1 + 1e-6)).all()
    assert np.abs(atoms.positions - other.positions).max() > 0.1


def test_the_seed_decides_and_nothing_else(crystals):
    """Neither the batch size nor what else is drawn: sample i depends on the seed and i."""
    four = agedi.sample(crystals, formula="Cu3", n_samples=4, seed=3, **QUICK)
    in_pairs = agedi.sample(crystals, formula="Cu3", n_samples=4, seed=3, batch_size=2, **QUICK)
    np.testing.assert_allclose(positions_of(four), positions_of(in_pairs), rtol=0, atol=1e-4)
    again = agedi.sample(crystals, formula="Cu3", n_samples=4, seed=3, **QUICK)
    np.testing.assert_array_equal(positions_of(four), positions_of(again))
    two = agedi.sample(crystals, formula="Cu3", n_samples=2, seed=3, **QUICK)
    np.testing.assert_allclose(positions_of(two), positions_of(four[:2]), rtol=0, atol=1e-4)
    other = agedi.sample(crystals, formula="Cu3", n_samples=4, seed=4, **QUICK)
    assert np.abs(positions_of(four) - positions_of(other)).max(axis=(1, 2)).min() > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_templates_stay_bit_for_bit_and_new_atoms_between_the_walls(slabs, sampler):
    atoms = agedi.sample(slabs, formula="AuCu", template=surface(), sampler=sampler, steps=5, n_samples=2)[1]
    np.testing.assert_array_equal(atoms.positions[:4], surface().positions)
    assert atoms.get_chemical_symbols() == ["Cu"] * 4 + ["Au", "Cu"]
    np.testing.assert_array_equal(atoms.cell, surface().cell)
    heights = atoms.positions[4:, 2]
    assert ((heights >= 8.0 - 1e-5) & (heights <= 11.0 + 1e-5)).all()
    assert atoms.info["name"] == "template"


def test_a_formula_prescribes_the_composition_of_drawn_species(typed):
    many = {"n_samples": 8, **QUICK}
    for atoms in agedi.sample(typed, formula="Cu2OH", **many):
        assert atoms.symbols.formula.count() == {"Cu": 2, "O": 1, "H": 1}
    species = {tuple(atoms.numbers) for atoms in agedi.sample(typed, atomic_numbers=[29, 29, 8], **many)}
    assert len(species) > 1  # which atom is which is drawn
    free = agedi.sample(typed, n_atoms=4, **many)
    assert len({str(atoms.symbols.formula.convert("hill")) for atoms in free}) > 1
    assert set(np.concatenate([atoms.numbers for atoms in free]).tolist()) <= set(typed.config.species)


def test_species_alone_are_drawn_at_given_positions(tiny_diffusion):
    positions = np.random.default_rng(0).uniform(0, 5, (4, 3))
    atoms = agedi.sample(tiny_diffusion("Types"), positions=positions, **QUICK)[0]
    np.testing.assert_allclose(atoms.positions, positions, rtol=0, atol=1e-6)
    assert set(atoms.numbers.tolist()) <= {1, 6, 8, 29, 79}


def test_molecules_need_no_cell(tiny_diffusion):
    atoms = agedi.sample(tiny_diffusion("Positions", sde="vp"), formula="CH4", steps=5)[0]
    assert not atoms.pbc.any()
    assert atoms.cell.rank == 0
    np.testing.assert_allclose(atoms.positions.mean(axis=0), 0.0, atol=1e-4)


def test_a_property_and_its_weight_change_samples(tiny_diffusion):
    model = tiny_diffusion(
        "CellPositions",
        conditions=(ConditionConfig(name="energy", std=0.1), ConditionConfig(name="group", kind="integer")),
    )

    def draw(**arguments):
        return agedi.sample(model, formula="Cu4", **QUICK, **arguments)[0].positions

    low, high = draw(property={"energy": -3.0, "group": 2}), draw(property={"energy": 3.0, "group": 2})
    assert np.abs(low - high).max() > 1e-3
    unconditional, ignored = draw(), draw(property={"energy": -3.0, "group": 2}, guidance_weight=0.0)
    np.testing.assert_allclose(unconditional, ignored, rtol=0, atol=1e-4)
    assert np.abs(unconditional - low).max() > 1e-3
    stronger = draw(property={"energy": -3.0, "group": 2}, guidance_weight=3.0)
    assert np.abs(stronger - low).max() > 1e-3
    one = draw(property={"energy": -3.0, "group": 2}, guidance_weight=1.0)
    np.testing.assert_array_equal(one, low)


def test_trajectories_end_in_the_sample(typed):
    """steps + 1 frames, of which the first is all noise and the last is what one gets without a trajectory."""
    frames = agedi.sample(typed, formula="Cu2O", n_samples=2, save_trajectory=True, **QUICK)
    assert [len(way) for way in frames] == [QUICK["steps"] + 1] * 2
    plain = agedi.sample(typed, formula="Cu2O", n_samples=8, **QUICK)[:2]
    for way, atoms in zip(frames, plain, strict=True):
        assert way[0].numbers.tolist() == [0, 0, 0]
        np.testing.assert_array_equal(way[-1].numbers, atoms.numbers)
        np.testing.assert_allclose(way[-1].positions, atoms.positions, rtol=0, atol=1e-4)
    corrected = agedi.sample(
        typed, formula="Cu2O", sampler="pc", save_trajectory=True,
        sampler_kwargs={"corrector_steps": 2, "save_corrector_frames": True}, **QUICK,
    )  # fmt: skip
    assert len(corrected[0]) == 3 * QUICK["steps"] + 1


def test_graphs_are_returned_if_asked_for(crystals):
    graph = agedi.sample(crystals, formula="Cu3", as_atoms=False, n_samples=2, **QUICK)[0]
    atoms = agedi.sample(crystals, formula="Cu3", n_samples=2, **QUICK)[0]
    np.testing.assert_array_equal(graph.pos, atoms.positions.astype(np.float32))
    assert graph.present.tolist() == [True] * 3
    as_template = agedi.sample(crystals, formula="O", template=graph, steps=6, n_samples=2)[0]
    np.testing.assert_array_equal(as_template.positions[:3].astype(np.float32), graph.pos)


def test_another_formula_of_the_same_bucket_compiles_nothing(crystals, caplog):
    def compilations(formula, **arguments):
        caplog.clear()
        with caplog.at_level(logging.WARNING), jax.log_compiles():
            agedi.sample(crystals, formula=formula, n_samples=2, **QUICK, **arguments)
        return len([record for record in caplog.records if "Compiling" in record.getMessage()])

    assert compilations("Au3O2") > 0
    assert compilations("Cu4O2") == 0
    assert compilations("H7", seed=1) == 0


def test_neighbor_lists_that_overflow_are_searched_again(crystals, caplog, monkeypatch):
    """With too few slots at first: doubled until there are enough, and nothing is lost."""
    arguments = {"formula": "Cu6", "n_samples": 4, "batch_size": 2, **QUICK}
    expected = agedi.sample(crystals, **arguments)
    monkeypatch.setattr(chunks, "estimate_capacity", lambda *_: 4)
    monkeypatch.setattr(chunks, "CAPACITY_STEP", 4)
    with caplog.at_level(logging.INFO, logger="agedi"):
        found = agedi.sample(crystals, **arguments)
    assert (
        "of 2 structures have atoms with more than 4 neighbors; running them again with 8 slots per atom" in caplog.text
    )
    np.testing.assert_allclose(positions_of(found), positions_of(expected), rtol=0, atol=1e-3)
    # The second chunk begins with what the first one needed.
    assert caplog.text.count("more than 4 neighbors") == 1


def test_results_come_as_they_are_ready_and_in_order(crystals, monkeypatch):
    ran = []
    run = sampling.compiled_reverse

    def counted(*arguments, **sizes):
        ran.append(1)
        return run(*arguments, **sizes)

    monkeypatch.setattr(sampling, "compiled_reverse", counted)
    config = SampleConfig(num_samples=6, batch_size=2, sampler=SamplerConfig(steps=6))
    drawn = sampling.iterate_samples(crystals, SampleRequest(formula="Cu3", cell=CELL), config)
    assert ran == []
    next(drawn), next(drawn)
    assert len(ran) == 1
    assert len(list(drawn)) == 4
    assert len(ran) == 3


def test_force_fields_guide_and_finish(slabs):
    """Guidance changes samples; extra steps lower the forces, and their frames follow those of sampling."""
    arguments = {"formula": "Au2", "template": surface(), "steps": 5, "n_samples": 2}
    plain = agedi.sample(slabs, **arguments)
    same = agedi.sample(slabs, ff_guidance={"guidance": 0.0}, **arguments)
    np.testing.assert_array_equal(positions_of(plain), positions_of(same))
    guided = agedi.sample(slabs, ff_guidance=50.0, **arguments)
    assert np.abs(positions_of(plain) - positions_of(guided)).max() > 1e-4

    config = agedi.ForcefieldGuidanceConfig(force_threshold=1e-4, max_extra_steps=4)
    frames = agedi.sample(slabs, ff_guidance=config, save_trajectory=True, **arguments)
    finished = agedi.sample(slabs, ff_guidance=config, **arguments)
    for atoms in plain:
        atoms.set_constraint(FixAtoms(range(4)))
    relaxed = agedi.relax(slabs, plain, fmax=1e-4, steps=4)
    for way, atoms, before, after in zip(frames, finished, plain, relaxed, strict=True):
        assert 5 + 1 < len(way) <= 5 + 1 + 4
        np.testing.assert_allclose(way[5].positions, before.positions, rtol=0, atol=1e-5)
        np.testing.assert_allclose(way[-1].positions, atoms.positions, rtol=0, atol=1e-4)
        np.testing.assert_allclose(after.positions, atoms.positions, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(atoms.positions[:4], surface().positions)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_samples": 0}, "num_samples must be a whole number of at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"sampler": "euler"}, "sampler must be one of em, pc, heun, ddim, heun_ode, ffpc; got 'euler'"),
        ({"sampler_kwargs": {"speed": 2}}, "sampler_kwargs must be among .*corrector_steps.*; got 'speed'"),
        ({"sampler_kwargs": {"steps": 2}}, "sampler_kwargs must be among .*; got 'steps'"),
        ({"sampler_kwargs": {"corrector_steps": 2}}, "corrector_steps is for sampler pc or ffpc; the sampler is em"),
        ({"sampler_kwargs": {"churn": 2.0}}, "churn is for sampler heun"),
        ({"sampler_kwargs": {"rho": 3.0}}, "rho is for grid rho"),
        ({"sampler_kwargs": {"eps": 1.5}}, "eps must lie between 0 and 1"),
        ({"sampler": "ffpc"}, "sampler ffpc needs a force field, and this model was trained without one"),
        ({"ff_guidance": 1.0}, "ff_guidance needs a force field"),
        ({"ff_guidance": {"max_extra_steps": 5}}, "ff_guidance needs a force field"),
        ({"ff_guidance": -1.0}, "ff_guidance: guidance must be at least 0"),
        ({"ff_guidance": {"weight": 5}}, "ff_guidance may have guidance, zeta, .*; got 'weight'"),
        ({"guidance_weight": 2.0}, "guidance_weight is for a property"),
        ({"property": {"energy": -3.5}}, "property 'energy' is not one of this model"),
        ({"fromula": "Cu"}, "unknown key 'fromula'; did you mean 'formula'"),
        ({"num_samples": 2, "n_samples": 2}, "num_samples is given twice; the last time as n_samples"),
    ],
)
def test_wrong_arguments_are_named(crystals, arguments, words):
    with pytest.raises(ValueError, match=words):
        agedi.sample(crystals, formula="Cu2", **{**QUICK, **arguments})


def test_positions_that_are_no_numbers_are_an_error(crystals):
    broken = crystals._replace(
        model=crystals.model._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, crystals.model.params))
    )
    with pytest.raises(FloatingPointError, match="positions that are not finite; use more steps"):
        agedi.sample(broken, formula="Cu2", n_samples=2, **QUICK)


@pytest.mark.parametrize(
    ("count", "length"), [(1, 4), (4, 4), (5, 8), (31, 32), (33, 40), (64, 64), (65, 80), (200, 224)]
)
def test_buckets_waste_at_most_a_quarter(count, length):
    assert chunks.bucket(count) == length
    assert len({chunks.bucket(n) for n in range(1, 129)}) == 16


def test_template_atoms_are_fixed_for_what_follows(slabs):
    sample = agedi.sample(slabs, formula="Cu", template=surface(), steps=6)[0]
    assert sample.constraints[0].index.tolist() == list(range(len(surface())))


def test_a_cell_larger_than_the_noise_is_warned_of(crystals, caplog):
    agedi.sample(crystals, formula="Cu2", **{**QUICK, "cell": [40.0, 4.0, 4.0]})
    assert "the cell is larger than those of the training data" in caplog.text
