"""From flags to rewards, and one clear line for what is missing."""

import dataclasses
import pathlib
import sys

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalformer.rl.config import RewardConfig
from crystalformer.rl.reward.load import check_reward, open_reward
from matterform.arguments import Command, parse
from matterform.config import from_dict, to_dict
from matterform.potentials.base import Properties, PropertyModel
from matterform.potentials.config import PotentialConfig
from matterform.stability.references import References, save_references

EMT = PotentialConfig(mlff_model="ase", mlff_variant="ase.calculators.emt:EMT", mlff_corrected=True)
COPPER = Structure(Lattice.cubic(3.6), ["Cu"] * 4, [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
CLOSE = Structure(Lattice.cubic(2.5), ["Cu", "Au"], [[0, 0, 0], [0, 0, 0.4]])


@pytest.fixture
def hull(tmp_path) -> pathlib.Path:
    """A table of formation energies of copper and gold."""
    path = tmp_path / "hull.csv"
    path.write_text("pretty_formula,formation_energy_per_atom\nCu,0.0\nAu,0.0\nCuAu,-0.05\n")
    return path


@pytest.fixture
def references(tmp_path) -> pathlib.Path:
    """Energies of the elements in EMT, as if copper were lower than it is."""
    save_references(References({"Cu": -0.3, "Au": 0.0}), tmp_path / "references.json")
    return tmp_path / "references.json"


def test_flags_become_a_config(tmp_path):
    arguments = "--reward ehull my_rewards:density --weights 1 0.5 --convex-path hull --mlff_model orb --workers 2"
    config = parse(Command("test", RewardConfig, lambda config: 0), "prog", arguments.split())
    assert config.reward == ("ehull", "my_rewards:density")
    assert config.weights == (1.0, 0.5)
    assert config.potential == PotentialConfig(mlff_model="orb", workers=2)
    assert from_dict(RewardConfig, to_dict(config)) == config


def test_no_two_flags_share_a_name():
    own = {field.name for field in dataclasses.fields(RewardConfig)}
    assert not own & {field.name for field in dataclasses.fields(PotentialConfig)}


def test_the_hull_reward_of_emt(hull, references):
    with open_reward(RewardConfig(convex_path=hull, references=references, potential=EMT)) as reward:
        scores = reward.score([COPPER, CLOSE])
    # EMT puts fcc copper at 3.6 Å at -0.0057 eV/atom.
    assert scores.details["energy_per_atom"][0] == pytest.approx(-0.0057, abs=2e-3)
    np.testing.assert_allclose(scores.values[0], -0.3 - scores.details["energy_per_atom"][0], rtol=1e-6)
    assert reward.name == "ehull"
    assert reward.worst == -10


def test_several_rewards_are_weighed_and_extras_go_around_the_sum(hull, references, tmp_path):
    config = RewardConfig(
        reward=("ehull", "force", "pair"),
        weights=(1.0, 0.5, 0.1),
        convex_path=hull,
        references=references,
        reward_clip=2.0,
        validity_penalty=1.5,
        uniqueness_bonus=0.25,
        potential=EMT,
    )
    with open_reward(config) as reward:
        scores = reward.score([COPPER, COPPER, CLOSE])
    details = scores.details
    total = details["reward_ehull"] + 0.5 * details["reward_force"] + 0.1 * details["reward_pair"]
    np.testing.assert_array_equal(details["unique"], [1, 0, 1])
    np.testing.assert_array_equal(details["valid"], [1, 1, 0])
    np.testing.assert_allclose(scores.values, total + np.array([0.25, 0, 0.25 - 1.5]))
    assert reward.worst == pytest.approx(-2 - 0.5 * np.log(200) - 0.1 * 10 - 1.5)


def test_without_weights_rewards_count_alike():
    with open_reward(RewardConfig(reward=("force", "pair"), potential=EMT)) as reward:
        scores = reward.score([COPPER])
    np.testing.assert_allclose(scores.values, scores.details["reward_force"] + scores.details["reward_pair"])


def test_the_whole_is_clipped_on_either_side_before_penalties():
    values = {}
    for name, options in {"plain": {}, "high": {"reward_high": 2.0}, "low": {"reward_low": -1.0}}.items():
        config = RewardConfig(reward=("pair",), weights=(2.0,), validity_penalty=0.5, **options)
        with open_reward(config) as reward:
            values[name] = [*reward.score([COPPER, CLOSE]).values, reward.worst]
    plain = values["plain"]
    assert plain[0] > 2
    np.testing.assert_allclose(plain[1:], [-20.5, -20.5])
    np.testing.assert_allclose(values["high"], [2, -20.5, -20.5])
    np.testing.assert_allclose(values["low"], [plain[0], -1.5, -1.5])


def test_what_the_hull_does_not_know_costs_its_penalty_after_the_clip(hull, references):
    alloy = COPPER.copy()
    alloy.replace(0, "Au")
    config = RewardConfig(convex_path=hull, references=references, reward_high=-9.0, unknown_penalty=0.5, potential=EMT)
    with open_reward(config) as reward:
        scores = reward.score([alloy, COPPER])  # an element is at zero by convention, in a hull of formation energies
    np.testing.assert_array_equal(scores.details["known_system"], [1, 0])
    np.testing.assert_array_equal(scores.values, [-9.0, -9.5])


def test_models_of_properties_are_opened_from_their_folders(tmp_path, monkeypatch):
    opened = []

    def load(config):
        opened.append(config)
        value = 8.0 if config.property_path.name == "dielectric" else 2.5
        return PropertyModel("made up", lambda s: Properties(np.full(len(s), value), [""] * len(s)))

    monkeypatch.setattr("crystalformer.rl.reward.load.load_property", load)
    for name in ("gap", "dielectric"):
        (tmp_path / name).mkdir()
    config = RewardConfig(
        reward=("property", "dielectric"),
        target=3.0,
        property_form="squared",
        property_path=tmp_path / "gap",
        fidelity=1,
        dielectric_path=tmp_path / "dielectric",
        potential=PotentialConfig(device="cuda"),
    )
    with open_reward(config) as reward:
        scores = reward.score([COPPER])
    np.testing.assert_allclose(scores.details["reward_property"], [-0.25])
    np.testing.assert_allclose(scores.details["reward_dielectric"], [20])
    assert [(model.property_path.name, model.fidelity, model.device) for model in opened] == [
        ("gap", 1, "cuda"),
        ("gap", 1, "cuda"),
        ("dielectric", None, "cuda"),
    ]


def test_threads_are_those_of_property_models_too(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    seen = []

    def predict(structures):
        seen.append(torch.get_num_threads())
        return Properties(np.zeros(len(structures)), [""] * len(structures))

    monkeypatch.setattr("crystalformer.rl.reward.load.load_property", lambda config: PropertyModel("made up", predict))
    before = torch.get_num_threads()
    config = RewardConfig(
        reward=("property",), target=3.0, property_path=tmp_path, potential=PotentialConfig(threads=before + 1)
    )
    with open_reward(config) as reward:
        reward.score([COPPER])
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_a_function_of_ones_own_needs_no_potential(tmp_path, monkeypatch):
    (tmp_path / "count_of_options.py").write_text("def count(structures):\n    return [len(s) for s in structures]\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("crystalformer.rl.reward.load.open_potential", None)
    for workers in (0, 1):
        config = RewardConfig(reward=("count_of_options:count",), custom_worst=3.0, reward_workers=workers)
        with open_reward(config) as reward:
            np.testing.assert_array_equal(reward.score([COPPER, CLOSE]).values, [4, 3])


def test_novelty_is_judged_against_the_reference(tmp_path):
    from matterform.io.formats import write_structures

    write_structures(tmp_path / "known.csv", [COPPER])
    config = RewardConfig(reward=("pair",), novelty_bonus=2.0, novelty_reference=tmp_path / "known.csv")
    with open_reward(config) as reward, open_reward(RewardConfig(reward=("pair",))) as plain:
        gain = reward.score([COPPER, CLOSE]).values - plain.score([COPPER, CLOSE]).values
    np.testing.assert_allclose(gain, [0, 2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "the reward ehull needs --convex-path, the reference hull"),
        ({"reward": ("property",)}, "the reward property needs --property-path, the folder of the property model"),
        ({"reward": ("property",), "property_path": "."}, "the reward property needs --target"),
        ({"reward": ("dielectric",)}, "the reward dielectric needs --dielectric-path"),
        ({"reward": ("dielectric",), "dielectric_path": "."}, "the reward dielectric needs --property-path"),
        ({"reward": ("pair",), "novelty_bonus": 1.0}, "--novelty-bonus needs --novelty-reference"),
        ({"reward": ("no_such_module:f",)}, "importing no_such_module for the reward no_such_module:f raised"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_loaded(options, words):
    options = {name: pathlib.Path(value) if name.endswith("_path") else value for name, value in options.items()}
    with pytest.raises(ValueError, match=words), open_reward(RewardConfig(**options)):
        pass


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reward": ("force",), "relax_steps": 5}, "--relax-steps does nothing with the reward force; it is for ehull"),
        ({"reward_workers": 2}, "--reward-workers does nothing with the reward ehull; it is for module:function"),
        ({"target": 1.0}, "--target does nothing with the reward ehull; it is for property"),
        ({"reward": ("pair", "force"), "reward_clip": 5.0}, "reward pair [+] force; it is for ehull and property"),
        ({"reward": ("dielectric",), "property_form": "squared"}, "--property-form does nothing"),
        ({"reward": ("pair",), "unknown_penalty": 1.0}, "--unknown-penalty does nothing .* for ehull"),
        ({"reward": ("pair",), "potential": PotentialConfig(workers=2)}, "--workers does nothing .* ehull and force"),
        ({"reward": ("pair",), "potential": PotentialConfig(mlff_model="mace")}, "--mlff-model does nothing"),
        ({"reward": ("pair",), "potential": PotentialConfig(device="cuda")}, "--device does nothing"),
        ({"reward": ("pair",), "novelty_reference": pathlib.Path()}, "nothing without --novelty-bonus"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(options, words, hull):
    given = options if "reward" in options and "ehull" not in options["reward"] else {"convex_path": hull, **options}
    if "dielectric" in given.get("reward", ()):
        given |= {"dielectric_path": hull, "property_path": hull}
    with pytest.raises(ValueError, match=words):
        check_reward(RewardConfig(**given))


def test_flags_that_one_of_several_rewards_uses_are_accepted(hull):
    potential = PotentialConfig(mlff_model="mace", workers=2, threads=2, device="cuda")
    check_reward(RewardConfig(reward=("pair", "ehull"), convex_path=hull, relax_steps=5, potential=potential))
    check_reward(RewardConfig(reward=("pair",), potential=PotentialConfig(threads=2)))


@pytest.mark.parametrize("field", ["convex_path", "references", "novelty_reference"])
def test_files_that_are_not_there_are_named(field, hull):
    options = {
        "convex_path": hull,
        "novelty_reference": hull,
        "novelty_bonus": 1.0,
        field: pathlib.Path("not_here.json"),
    }
    with pytest.raises(FileNotFoundError, match=r"not_here\.json does not exist"):
        check_reward(RewardConfig(**options))


def test_a_hull_of_formation_energies_asks_for_references(hull):
    words = "holds energies of formation, so the reward ehull needs --references"
    with pytest.raises(ValueError, match=words), open_reward(RewardConfig(convex_path=hull, potential=EMT)):
        pass


def test_energies_that_cannot_be_compared_are_refused_before_anything_is_scored(hull, references, tmp_path):
    unknown = dataclasses.replace(EMT, mlff_corrected=None)
    config = RewardConfig(convex_path=hull, references=references, potential=unknown)
    with pytest.raises(ValueError, match="--mlff-corrected"), open_reward(config):
        pass
    others = tmp_path / "others.json"
    save_references(References({"Cu": -0.3, "Au": 0.0}, "chgnet 0.3.0"), others)
    config = RewardConfig(convex_path=hull, references=others, potential=EMT)
    with pytest.raises(ValueError, match=r"the references are of chgnet 0\.3\.0"), open_reward(config):
        pass


def test_a_composition_penalty_asks_for_smact(monkeypatch):
    monkeypatch.setitem(sys.modules, "smact.screening", None)
    with pytest.raises(ImportError, match=r"pip install 'matterform\[eval\]'"):
        check_reward(RewardConfig(reward=("pair",), composition_penalty=1.0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reward": ()}, "reward: expected at least one of ehull"),
        ({"reward": ("hull",)}, "reward: expected one of ehull, .*, module:function, found 'hull'"),
        ({"reward": ("pair", "pair")}, "reward: each may be there once; found pair, pair"),
        ({"weights": (1.0, 2.0)}, "weights: expected one for each of 1 rewards, found 2"),
        ({"weights": (-1.0,)}, "weights must be positive"),
        ({"reward_clip": 0.0}, "reward_clip must be positive; found 0"),
        ({"relax_steps": -1}, "relax_steps must not be negative; found -1"),
        ({"stress_weight": -1.0}, "stress_weight must not be negative"),
        ({"reward_workers": -1}, "reward_workers must not be negative"),
        ({"novelty_bonus": float("nan")}, "novelty_bonus must not be negative; found nan"),
        ({"reward_low": 1.0, "reward_high": 1.0}, "reward_low must be below reward_high; found 1.0 and 1.0"),
        ({"target": float("inf")}, "target must be finite; found inf"),
        ({"property_batch_size": 0}, "property_batch_size must be at least 1"),
        ({"custom_worst": float("nan")}, "custom_worst must be finite; found nan"),
        ({"custom_worst": -float("inf")}, "custom_worst must be finite; found -inf"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RewardConfig(**options)
