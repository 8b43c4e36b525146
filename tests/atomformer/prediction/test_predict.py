"""Predictions of many structures: what comes back, independence of companions, and images against brute force."""

import dataclasses
import math

import ase.build
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from pymatgen.core import Lattice
from pymatgen.core import Structure as PymatgenStructure
from scipy.special import erf

from atomformer.checkpoint.published import Pretrained, from_pretrained
from atomformer.config import HEADS, EnergyScale
from atomformer.data.inputs import input_row, prepare_structure, reference_energy
from atomformer.data.rows import check_row
from atomformer.data.vocabulary import GRAPH
from atomformer.network.heads import Outputs
from atomformer.network.transformer import make_apply
from atomformer.prediction import batching
from atomformer.prediction.predict import Prediction, annotate, embed, predict, predict_all

pytestmark = pytest.mark.usefixtures("quick")

REFERENCES = EnergyScale(references=((1, -13.6), (6, -1029.5), (8, -2041.25), (14, -289.0)))
# What crystals are predicted with: everything that depends on where atoms are.
CRYSTAL_HEADS = ("formation_energy", "total_energy", "coords", "classification")


@pytest.fixture(scope="session")
def make_model(tiny_config, lively):
    """A function from changes of the config to a random model; the same network is made, and compiled, only once."""
    made = {}

    def make(**changes) -> Pretrained:
        config = dataclasses.replace(tiny_config, **changes)
        network = dataclasses.replace(config, energy=EnergyScale(), problem="regression")  # the rest is the host's
        if network not in made:
            params = jax.tree.map(jnp.copy, lively(network, seed=1))  # which is shared
            blocks = params["encoder"]["blocks"]  # so that much depends on distances
            blocks |= {"pair_proj": {**blocks["pair_proj"], "w": 2 * blocks["pair_proj"]["w"]}}
            blocks |= {"out_proj": 3 * blocks["out_proj"]}
            made[network] = Pretrained(params, network, make_apply(network))
        return made[network]._replace(config=config)

    return make


@pytest.fixture(scope="session")
def crystal_model(make_model):
    """A function from the kind of distances to a conservative model of crystals."""
    return lambda periodic: make_model(
        heads=CRYSTAL_HEADS, num_labels=2, conservative=True, periodic=periodic, cutoff=4.5
    )


def random_atoms(counts, seed=0):
    """Molecules of atoms on a jittered grid, so that none are too close."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3) * 1.4
    return [
        ase.Atoms(rng.choice([1, 6, 8], n), rng.permutation(grid)[:n] + rng.uniform(-0.3, 0.3, (n, 3))) for n in counts
    ]


MOLECULES = random_atoms([6, 5, 6])  # of one bucket


def crystal():
    """Three atoms without symmetry in a skewed cell smaller than the cutoffs here."""
    cell = np.array([[3.6, 0.2, -0.3], [1.1, 3.9, 0.1], [0.4, -1.0, 4.3]])
    scaled = np.array([[0.1, 0.15, 0.2], [0.55, 0.6, 0.1], [0.3, 0.45, 0.7]])
    return ase.Atoms("SiOC", scaled_positions=scaled, cell=cell, pbc=True)


def one_by_one(model, structures):
    """Predictions in batches of one, which all have one shape."""
    return list(predict_all(model, structures, max_pairs=1))


def counting(config):
    """A model without a network, whose energy is the sum of atomic numbers, and the shapes that it is traced for."""
    traces = []

    def apply(params, key, structure):
        traces.append(structure.tokens.shape)
        total = jnp.sum(jnp.where(structure.mask, structure.tokens, 0)).astype(jnp.float32)
        return Outputs(jnp.zeros((len(structure.tokens) + 1, config.dim)), formation_energy=total)

    params = {"encoder": {"blocks": {"out_proj": jnp.zeros((1, 1, config.dim))}}}
    return Pretrained(params, config, apply), traces


def test_energy_and_forces_are_what_unpacking_gives(make_model):
    energy, forces = predict(make_model(), MOLECULES)
    assert energy.dtype == np.float64
    assert energy.shape == (3,)
    assert [array.shape for array in forces] == [(6, 3), (5, 3), (6, 3)]
    everything = list(predict_all(make_model(), MOLECULES))
    np.testing.assert_array_equal(energy, [found.formation_energy for found in everything])
    np.testing.assert_array_equal(forces[1], everything[1].forces)


def test_golden_model_predicts_the_golden_values(golden_dir):
    want = np.load(golden_dir / "atomformer" / "s2ef.npz")
    counts = want["attention_mask"].sum(axis=1)
    chosen = np.flatnonzero(counts == 14)
    molecules = [ase.Atoms(want["input_ids"][i], want["coords"][i]) for i in chosen]
    model = from_pretrained(golden_dir / "atomformer")
    energy, forces = predict(model, molecules)
    np.testing.assert_allclose(energy, want["energy_pred"][chosen], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.stack(forces), want["forces_pred"][chosen], rtol=1e-4, atol=1e-5)
    system, atoms = embed(model, molecules)
    np.testing.assert_allclose(system, want["hidden"][chosen, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.stack(atoms), want["hidden"][chosen, 1:], rtol=1e-4, atol=1e-4)


def test_atoms_rows_and_pymatgen_structures_are_one_input(tiny_config):
    cell, coords = np.diag([4.0, 5, 6]), np.array([[0.1, 0.2, 0.3], [2, 2.5, 3]])
    row = {"input_ids": [14, 8], "coords": coords, "cell": cell, "pbc": [True] * 3}
    want = check_row(row)
    for structure in (
        {**row, "forces": "not looked at"},
        ase.Atoms("SiO", coords, cell=cell, pbc=True, info={"gap": math.inf}),
        PymatgenStructure(Lattice(cell), ["Si", "O"], coords, coords_are_cartesian=True),
    ):
        found = input_row(structure, tiny_config)
        assert found.keys() == want.keys()
        for name, column in want.items():
            np.testing.assert_allclose(found[name], column, atol=1e-12)


def test_references_are_added_in_double_precision(make_model):
    bare, _ = predict(make_model(), MOLECULES)
    full, _ = predict(make_model(energy=REFERENCES), MOLECULES)
    sums = [sum(dict(REFERENCES.references)[number] for number in atoms.numbers) for atoms in MOLECULES]
    assert max(np.abs(sums)) > 3000  # where float32 has steps of 2e-4
    np.testing.assert_allclose(full - bare, sums, rtol=0, atol=1e-8)


def test_every_head_is_reported(make_model):
    model = make_model(heads=HEADS, problem="binary", num_labels=3)
    system, states = embed(model, MOLECULES)
    for i, found in enumerate(predict_all(model, MOLECULES, features=True)):
        n = len(MOLECULES[i])
        assert found.energy == found.total_energy != found.formation_energy
        assert [x.shape for x in (found.forces, found.coords, found.logits)] == [(n, 3), (n, 3), (n, 123)]
        np.testing.assert_allclose(found.probabilities, 1 / (1 + np.exp(-found.labels)), rtol=1e-5)
        assert found.stress is None
        np.testing.assert_allclose(found.system_features, system[i], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.atom_features, states[i], rtol=1e-5, atol=1e-5)


def test_classes_have_probabilities_and_regressions_have_none(make_model):
    found, *_ = predict_all(make_model(heads=HEADS, problem="multiclass", num_labels=3), MOLECULES, features=True)
    assert found.probabilities.sum() == pytest.approx(1)
    np.testing.assert_allclose(np.diff(np.log(found.probabilities)), np.diff(found.labels), atol=1e-5)
    found, *_ = predict_all(make_model(heads=HEADS, num_labels=3), MOLECULES, features=True)
    assert found.probabilities is None


def test_models_without_energy_or_forces_are_sent_elsewhere(make_model):
    with pytest.raises(ValueError, match=r"heads classification, not energy and forces; use predict_all"):
        predict(make_model(heads=("classification",)), MOLECULES)


def test_conservative_coordinates_come_in_the_frame_of_the_input(crystal_model):
    model, atoms = crystal_model("images"), crystal()
    moved = atoms.copy()
    moved.positions += np.array([[5, -7, 3], [-1, 2, 0], [0, 0, 0]]) @ atoms.cell.array
    step = float(model.params["heads"]["coords"]["step"][0])
    for structure, found in zip([atoms, moved], one_by_one(model, [atoms, moved]), strict=True):
        np.testing.assert_allclose(found.coords, structure.positions + step * found.forces, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"periodic": "minimum_image"}, {"periodic": "images", "cutoff": 3.0, "conservative": True}],
    ids=str,
)
def test_companions_and_padding_change_nothing(make_model, changes):
    model, structures = make_model(**changes), random_atoms([9, 10, 9])
    for atoms in structures[1:]:
        atoms.set_cell(np.diag([5.8, 6.1, 6.5]))
        atoms.pbc = True
    energy, forces = predict(model, structures)
    alone_energy, alone_forces = predict(model, [structures[2]])
    np.testing.assert_allclose(energy[2], alone_energy[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(forces[2], alone_forces[0], rtol=1e-6, atol=1e-6)


def test_each_bucket_compiles_once_and_order_is_kept_whatever_the_batches(tiny_config, monkeypatch):
    model, traces = counting(tiny_config)
    structures = random_atoms([6, 2, 5, 6, 2, 5, 6])
    want = [atoms.numbers.sum() for atoms in structures]
    for _ in range(2):
        assert [found.energy for found in predict_all(model, structures)] == want
        assert sorted(traces) == [(2,), (6,)]
    monkeypatch.setattr(batching, "WINDOW_ATOMS", 8)
    assert [found.energy for found in predict_all(model, iter(structures), max_pairs=1)] == want
    assert sorted(traces) == [(2,), (2,), (6,), (6,)]


def test_explicit_images_compile_once_for_each_bucket_too(tiny_config):
    model, traces = counting(dataclasses.replace(tiny_config, periodic="images", cutoff=4.0))
    silicon = [ase.build.bulk("Si", a=5.0 + 0.2 * i) for i in range(6)]
    assert len({len(prepared(atoms, model.config).edges.first) for atoms in silicon}) > 1
    assert [found.energy for found in predict_all(model, silicon)] == [28] * 6
    assert len(traces) == 1


def prepared(atoms, config):
    """The network's input for the atoms."""
    return prepare_structure(input_row(atoms, config), config)


def test_token_types_are_read_and_do_not_mix_with_structures_that_have_none(make_model):
    typed, zeros = MOLECULES[1].copy(), MOLECULES[1].copy()
    typed.set_array("token_type_ids", np.array([0, 1, 2, 1, 0]))
    zeros.set_array("token_type_ids", np.zeros(5, int))
    energy, _ = predict(make_model(), [*MOLECULES, typed, zeros])
    want, _ = predict(make_model(), MOLECULES)
    np.testing.assert_allclose(energy[:3], want, atol=1e-6)
    assert len({round(value, 3) for value in (energy[1], energy[3], energy[4])}) == 3


def test_nothing_in_nothing_out(make_model):
    energy, forces = predict(make_model(), [])
    assert energy.shape == (0,)
    assert forces == []
    assert embed(make_model(), [])[0].shape == (0, 32)


def broken(**changes):
    return {"input_ids": [1, 8], "coords": [[0.0, 0, 0], [0, 0, 1]], **changes}


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (broken(input_ids=[1, 119]), "atom 1 has token 119, which is no element"),
        (broken(input_ids=[1, 92]), "no reference energies of U"),
        (broken(coords=[[0, 0, 0], [0, math.nan, 1]]), r"coords: atom 1 has \[0.0, nan, 1.0\]"),
        (broken(coords=[[0, 0, 0], [0, 0, 1e-5]]), "atoms 0 and 1 are at the same place"),
        (ase.Atoms("XO", [[0, 0, 0], [0, 0, 1]]), "atom 0 has token 0, which is no element"),
        ("structures.xyz", "expected ASE Atoms, a pymatgen Structure or a row, found str"),
    ],
)
def test_unusable_structures_are_named_by_index_in_one_line(make_model, structure, message):
    model = make_model(energy=REFERENCES)
    with pytest.raises(ValueError, match=f"^structure 1: .*{message}") as error:
        predict(model, [broken(), structure])
    assert "\n" not in str(error.value)


def test_a_single_structure_must_be_in_a_list(make_model):
    with pytest.raises(ValueError, match="found Atom; give a list, also of a single structure"):
        predict(make_model(), MOLECULES[0])


def test_models_without_energies_need_no_references(make_model):
    config = make_model(heads=("classification",), energy=REFERENCES).config
    assert reference_energy(np.array([92]), config) == 0


def test_annotated_atoms_carry_results_and_labels(crystal_model):
    atoms = crystal()
    atoms.info["source"] = "made here"
    atoms.calc = SinglePointCalculator(atoms, energy=1.0)
    (found,) = one_by_one(crystal_model("images"), [atoms])
    annotated = annotate(atoms, found, ("gap", "width"))
    assert annotated.get_potential_energy() == found.total_energy
    np.testing.assert_array_equal(annotated.get_forces(), found.forces)
    np.testing.assert_allclose(annotated.get_stress(voigt=False), found.stress, atol=1e-7)
    np.testing.assert_array_equal(annotated.arrays["predicted_coords"], found.coords)
    assert annotated.info["formation_energy"] == found.formation_energy
    assert (annotated.info["gap"], annotated.info["width"]) == tuple(found.labels.tolist())
    assert annotated.info["source"] == "made here"
    assert atoms.get_potential_energy() == 1.0
    np.testing.assert_array_equal(annotate(atoms, found).info["labels"], found.labels)


def test_annotations_of_classes_are_probabilities_and_survive_a_file(tmp_path):
    (atoms,) = random_atoms([3])
    found = Prediction(
        formation_energy=-1.5, forces=np.eye(3), labels=np.zeros(2), probabilities=np.array([0.25, 0.75])
    )
    ase.io.write(tmp_path / "out.extxyz", annotate(atoms, found, ("metal", "insulator")))
    read = ase.io.read(tmp_path / "out.extxyz")
    assert (read.info["metal"], read.info["insulator"]) == (0.25, 0.75)
    assert read.get_potential_energy() == -1.5
    np.testing.assert_allclose(read.get_forces(), np.eye(3))


@pytest.mark.parametrize("periodic", ["minimum_image", "images"])
def test_equivalent_descriptions_of_a_crystal_are_equal(crystal_model, periodic):
    model, atoms, rng = crystal_model(periodic), crystal(), np.random.default_rng(1)
    structures = [atoms]
    for change in ([[1, 1, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 2], [3, 1, 6], [0, -1, 1]], np.eye(3)[[1, 0, 2]]):
        assert abs(np.linalg.det(change)) == pytest.approx(1)
        structures.append(atoms.copy())
        structures[-1].set_cell(np.array(change) @ atoms.cell.array)
        structures[-1].positions += rng.integers(-3, 4, (3, 3)) @ atoms.cell.array + np.array([0.3, 0.7, -20.1])
    structures.append(atoms.copy())
    structures[-1].set_cell(1.05 * atoms.cell.array)
    want, *others, different = one_by_one(model, structures)
    for found in others:
        assert found.energy == pytest.approx(want.energy, abs=5e-6)
        np.testing.assert_allclose(found.forces, want.forces, atol=1e-5)
        np.testing.assert_allclose(found.stress, want.stress, atol=1e-6)
    assert abs(different.energy - want.energy) > 1e-3


@pytest.mark.parametrize("periodic", ["minimum_image", "images"])
def test_only_periodic_directions_repeat(crystal_model, periodic):
    structures, patterns = [], [(True, True, False), (False, True, False), (False, False, False)]
    for pbc in patterns:
        atoms = crystal()
        atoms.pbc = pbc
        shifted, other = atoms.copy(), atoms.copy()
        shifted.positions[0] += np.array([2, -1, 1]) * pbc @ atoms.cell.array
        other.set_cell(np.where(np.array(pbc)[:, None], atoms.cell.array, np.eye(3) * 9))
        structures += [atoms, shifted, other]
    found = one_by_one(crystal_model(periodic), [*structures, crystal()])[:-1]  # in the shape of the other tests
    assert [prediction.stress for prediction in found] == [None] * 9
    energy = np.reshape([prediction.energy for prediction in found], (3, 3))
    np.testing.assert_allclose(energy, np.repeat(energy[:, :1], 3, axis=1), atol=5e-6)
    forces = np.reshape([prediction.forces for prediction in found], (3, 3, 9))
    np.testing.assert_allclose(forces, np.repeat(forces[:, :1], 3, axis=1), atol=1e-5)
    assert abs(energy[0, 0] - energy[2, 0]) > 1e-3


def images_by_hand(params, atoms, config):
    """Last states of the network with every image as a token of its own, in NumPy and float64.

    Rows are the system token and the atoms of the cell. Each has a list of keys: tokens, distances and weights.
    """
    n, encoder = len(atoms), jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["encoder"])
    keys = [[(0, 0.0, 1.0), *((j + 1, 0.0, 1.0) for j in range(n))]]
    reach = range(-12, 13)
    shifts = np.stack(np.meshgrid(reach, reach, reach), axis=-1).reshape(-1, 3) @ atoms.cell.array
    for i in range(n):
        found = [(0, 0.0, 1.0), (i + 1, 0.0, 1.0)]
        for j in range(n):
            distances = np.linalg.norm(atoms.positions[j] + shifts - atoms.positions[i], axis=1)
            for d in distances[(distances < config.cutoff) & (distances > 1e-6)]:
                found.append((j + 1, d, 0.5 * (1 + np.cos(np.pi * d / config.cutoff))))
        keys.append(found)
    tokens = np.array([GRAPH, *atoms.numbers])
    x = encoder["tokens"][tokens] + encoder["metadata"][tokens] @ encoder["features"]["w"] + encoder["features"]["b"]
    widths = np.abs(encoder["pair"]["stds"]) + 1e-5
    for layer in range(config.depth):
        p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], encoder["blocks"])
        projected = norm(x, p["in_norm"]) @ p["in_proj"]
        hidden = projected[:, : config.mlp_ratio * config.dim]
        hidden = 0.5 * hidden * (1 + erf(hidden / math.sqrt(2)))
        heads = projected[:, config.mlp_ratio * config.dim :].reshape(n + 1, 3, config.num_heads, config.head_dim)
        query, key, value = norm(heads[:, 0], p["q_norm"]), norm(heads[:, 1], p["k_norm"]), heads[:, 2]
        attended = np.zeros((n + 1, config.num_heads, config.head_dim))
        for i, found in enumerate(keys):
            columns = [j for j, _, _ in found]
            pair = tokens[i] * config.vocab_size + tokens[columns]
            u = encoder["pair"]["mul"][pair] * [d for _, d, _ in found] + encoder["pair"]["bias"][pair]
            gaussians = np.exp(-(((u[:, None] - encoder["pair"]["means"]) / widths) ** 2) / 2)
            gaussians /= math.sqrt(2 * math.pi) * widths
            bias = norm(gaussians, p["pair_norm"]) @ p["pair_proj"]["w"] + p["pair_proj"]["b"]
            logits = np.einsum("hd,khd->kh", query[i], key[columns]) / math.sqrt(config.head_dim) + bias[:, None]
            weights = np.array([w for _, _, w in found])[:, None] * np.exp(logits)
            attended[i] = np.einsum("kh,khd->hd", weights / weights.sum(axis=0), value[columns])
        update = np.concatenate([hidden, attended.reshape(n + 1, -1)], axis=1) @ p["out_proj"]
        x = x + update[:, : config.dim] + update[:, config.dim :]
    return x


def norm(x, p):
    """Layer normalisation."""
    centred = x - x.mean(axis=-1, keepdims=True)
    scale, offset = np.asarray(p["scale"], np.float64), np.asarray(p["offset"], np.float64)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * scale + offset


def small_cells():
    """Crystals whose cells are much smaller than the cutoff of 4.5 Å."""
    fcc = ase.build.bulk("Si", "fcc", a=3.8)
    strained, skewed = fcc.copy(), fcc.copy()
    strained.set_cell(fcc.cell.array @ [[1.04, 0.02, 0], [0.02, 0.97, 0.05], [0, 0.05, 1.1]])
    skewed.set_cell([[1, 0, 0], [2, 1, 0], [0, -1, 1]] @ strained.cell.array)
    return [fcc, strained, skewed, crystal()]


def test_images_are_tokens_of_their_own_also_in_cells_smaller_than_the_cutoff(crystal_model):
    model, crystals = crystal_model("images"), small_cells()
    assert max(np.linalg.norm(atoms.cell.array, axis=1).min() for atoms in crystals) < model.config.cutoff
    system, states = embed(model, crystals)
    for i, atoms in enumerate(crystals):
        want = images_by_hand(model.params, atoms, model.config)
        np.testing.assert_allclose(system[i], want[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(states[i], want[1:], rtol=1e-4, atol=1e-4)
    assert np.abs(system[0] - system[1]).max() > 0.02  # not because all images look alike


@pytest.mark.parametrize("periodic", ["minimum_image", "images"])
def test_stress_and_forces_are_derivatives_of_the_energy(crystal_model, in_double, periodic):
    model, atoms = crystal_model(periodic), crystal()
    (found,) = one_by_one(model, [atoms])
    structure = prepared(atoms, model.config)
    network = make_apply(in_double(dataclasses.replace(model.config, conservative=False, heads=("total_energy",))))

    def double(tree):
        return jax.tree.map(lambda x: jnp.asarray(x, np.float64 if x.dtype == np.float32 else x.dtype), tree)

    with jax.enable_x64(True):
        params = double({**model.params, "heads": {"total_energy": model.params["heads"]["total_energy"]}})
        structure = double(structure)

        @jax.jit
        def energy(move, strain):
            deformation = jnp.eye(3) + strain
            positions, cell = (structure.positions + move) @ deformation, structure.cell @ deformation
            return network(params, None, structure._replace(positions=positions, cell=cell)).total_energy

        def slope(function, step=1e-4):
            return float(function(step) - function(-step)) / (2 * step)

        zero = np.zeros((3, 3))
        units = [[np.outer(np.eye(3)[i], np.eye(3)[j]) for j in range(3)] for i in range(3)]
        forces = [[-slope(lambda h, u=unit: energy(h * u, zero)) for unit in row] for row in units]
        virial = np.array([[slope(lambda h, u=unit: energy(zero, h * (u + u.T) / 2)) for unit in row] for row in units])
    assert np.abs(found.forces).max() > 1e-2
    assert np.abs(virial).max() > 1e-2
    np.testing.assert_allclose(found.forces, forces, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.stress, virial / atoms.get_volume(), rtol=1e-4, atol=1e-6)
