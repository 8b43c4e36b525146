"""Configs survive YAML exactly, and every mistake is named."""

import dataclasses
import pathlib
from typing import Literal, Optional

import pytest

from matterform.config import from_dict, load_config, load_values, named, nested, save_config, setting, to_dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive; got {self.learning_rate}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    data: pathlib.Path
    steps: int
    optimizer: Optimizer = Optimizer()
    fallback: Optimizer | None = None
    elements: tuple[str, ...] = ()
    stages: tuple[Optimizer, ...] = ()
    ema_decay: Optional[float] = None  # noqa: UP045 the older spelling must work too
    label: str = ""
    resume: bool = False
    seed: int | str = 0
    budget: float | int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    rate: float = setting(1.0, "lr")


FULL = Run(
    data=pathlib.Path("data/mp 20.csv"),
    steps=3,
    optimizer=Optimizer(name="adamw", learning_rate=1e-7, betas=(0.1 + 0.2, 1 / 3)),
    fallback=Optimizer(),
    elements=("No", "Y", "Fe"),
    stages=(Optimizer(learning_rate=1e22), Optimizer(learning_rate=5e-324)),
    ema_decay=0.999,
    label="1e-3",
    resume=True,
    seed="null",
    budget=3,
)


@pytest.mark.parametrize("config", [FULL, Run(data=pathlib.Path("."), steps=1)], ids=["full", "defaults"])
def test_config_survives_the_file_exactly(tmp_path, config):
    path = tmp_path / "run" / "config.yaml"
    save_config(config, path)
    loaded = load_config(Run, path)
    assert loaded == config
    assert repr(loaded) == repr(config)  # 1 == 1.0 == True, so types need a look of their own
    assert from_dict(Run, to_dict(config)) == config


@pytest.mark.parametrize(
    "label", ["1e-3", "1e3", "-.5E+2", "1.", "0x1f", "true", "No", "~", "", " a ", "a: b", "2026-11-21"]
)
def test_strings_that_look_like_something_else_stay_strings(tmp_path, label):
    save_config(Run(data=pathlib.Path("."), steps=1, label=label), tmp_path / "run.yaml")
    assert load_config(Run, tmp_path / "run.yaml").label == label


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.0e-3", "1.e-3", ".1e-2", "+1e-03"])
def test_floats_with_an_exponent_are_floats(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(f"data: .\nsteps: 1\noptimizer: {{learning_rate: {text}, betas: [1e-1, 1]}}")
    optimizer = load_config(Run, path).optimizer
    assert (optimizer.learning_rate, optimizer.betas) == (1e-3, (0.1, 1.0))
    assert type(optimizer.learning_rate) is type(optimizer.betas[1]) is float


MISTAKES = {
    "stepz: 1": "unknown key 'stepz'; did you mean 'steps'",
    "zebra: 1": "unknown key 'zebra'; the known ones are data, steps",
    "optimizer: {learnig_rate: 1}": "unknown key 'optimizer.learnig_rate'; did you mean 'learning_rate'",
    "stages: [{}, {nome: adam}]": "unknown key 'stages[1].nome'; did you mean 'name'",
    "fallback: {nome: adam}": "unknown key 'fallback.nome'; did you mean 'name'",
    "steps: 1e4": "steps: expected int, found 10000.0 (float)",
    "steps: true": "steps: expected int, found True (bool)",
    "steps: '1'": "steps: expected int, found '1' (str)",
    "steps:": "steps: expected int, found None (NoneType)",
    "resume: 1": "resume: expected bool, found 1 (int)",
    "label: 1": "label: expected str, found 1 (int)",
    "data: 1": "data: expected Path, found 1 (int)",
    "elements: [Fe, No]": "elements[1]: expected str, found False (bool)",
    "elements: Fe": "elements: expected a list, found 'Fe' (str)",
    "optimizer: 3": "optimizer: expected keys of Optimizer, found 3 (int)",
    "optimizer: {betas: [0.9]}": "optimizer.betas: expected a list of 2 values, found [0.9]",
    "optimizer: {betas: [0.9, x]}": "optimizer.betas[1]: expected float, found 'x' (str)",
    "optimizer: {learning_rate: true}": "optimizer.learning_rate: expected float, found True (bool)",
    "optimizer: {learning_rate: '1e-3'}": "optimizer.learning_rate: expected float, found '1e-3' (str)",
    "optimizer: {learning_rate: -1}": "optimizer: learning_rate must be positive; got -1.0",
    "optimizer: {name: adamm}": "optimizer.name: expected one of 'adam', 'adamw', found 'adamm' (str); did you mean",
    "ema_decay: x": "ema_decay: expected float or null, found 'x' (str)",
    "seed: 1.5": "seed: expected int or str, found 1.5 (float)",
    "steps: 1\nsteps: 2": "keys given twice: ['steps']",
    "data: [": "is not valid YAML",
    "- 1": "expected keys of Run, found [1] (list)",
    "data: !!python/name:os.system": "is not valid YAML: could not determine a constructor",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistake_is_named_with_its_key(tmp_path, text):
    path = tmp_path / "run.yaml"
    given = "".join(f"{line}\n" for line in ("data: .", "steps: 1") if line.split(":")[0] not in text)
    path.write_text(text if text.startswith("- ") else given + text)
    with pytest.raises(ValueError, match=r"run\.yaml") as caught:
        load_config(Run, path)
    assert MISTAKES[text] in str(caught.value)


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "start.pkl"
    path.write_bytes(b"\x80\x04\x95")
    with pytest.raises(ValueError, match=r"start\.pkl is not YAML"):
        load_config(Run, path)


def test_missing_key_says_what_was_expected(tmp_path):
    (tmp_path / "run.yaml").write_text("data: .\n")
    with pytest.raises(ValueError, match=r"missing key 'steps' \(expected int\); found only \['data'\]"):
        load_config(Run, tmp_path / "run.yaml")


def test_empty_file_means_every_default(tmp_path):
    (tmp_path / "run.yaml").write_text("# nothing set\n")
    assert load_config(Optimizer, tmp_path / "run.yaml") == Optimizer()


def test_config_that_would_come_back_different_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="does not survive"):
        save_config(Run(data=pathlib.Path("."), steps=1, elements=["Fe"]), tmp_path / "run.yaml")
    with pytest.raises(ValueError, match=r"steps: expected int, found 1\.0"):
        save_config(Run(data=pathlib.Path("."), steps=1.0), tmp_path / "run.yaml")
    assert not list(tmp_path.iterdir())


def test_annotation_that_configs_cannot_hold_is_refused():
    class Table:
        pass

    @dataclasses.dataclass(frozen=True)
    class Holder:
        table: Table

    with pytest.raises(TypeError, match=r"Holder has an annotation .*Table"):
        from_dict(Holder, {"table": {}})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    data: pathlib.Path = setting(dataclasses.MISSING, "train_path")
    learning_rate: float = setting(1e-4, "lr")
    optimizer: Optimizer = setting(Optimizer(), "optim")
    stages: tuple[Rate, ...] = ()
    fallback: Rate | None = None


@pytest.mark.parametrize(
    "text",
    [
        "data: a\nlearning_rate: 1e-3\nstages: [{rate: 2}]\nfallback: {rate: 3}",
        "train_path: a\nlr: 1e-3\nstages: [{lr: 2}]\nfallback: {lr: 3}",
    ],
    ids=["names", "aliases"],
)
def test_published_names_of_keys_are_understood(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    expected = Fit(data=pathlib.Path("a"), learning_rate=1e-3, stages=(Rate(rate=2.0),), fallback=Rate(rate=3.0))
    fit = load_config(Fit, tmp_path / "run.yaml")
    assert fit == expected
    assert list(to_dict(fit)) == ["data", "learning_rate", "optimizer", "stages", "fallback"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "a", "lr": 1, "learning_rate": 1}, "lr and learning_rate are two names of one key"),
        ({"data": "a", "stages": [{"rate": 1, "lr": 1}]}, r"stages\[0\]\.rate and stages\[0\]\.lr are two names"),
        ({"data": "a", "lrr": 1}, "unknown key 'lrr'; did you mean 'lr'"),
        ({"data": "a", "lr": "x"}, "learning_rate: expected float, found 'x'"),
        ({"lr": 1}, "missing key 'data'"),
    ],
)
def test_mistakes_with_published_names_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(Fit, values)


def test_options_of_a_call_get_the_names_of_the_fields():
    start = object()
    assert named(Fit, {"lr": start, "data": 1}) == {"learning_rate": start, "data": 1}
    with pytest.raises(ValueError, match="'learning_rat'; did you mean 'learning_rate'"):
        named(Fit, {"learning_rat": 1})
    with pytest.raises(ValueError, match="lr and learning_rate are two names"):
        named(Fit, {"lr": 1, "learning_rate": 1})


def test_plain_values_of_a_file_are_read(tmp_path):
    path = tmp_path / "values.yaml"
    path.write_text("rate: 1e-3\nnames: [a, b]\n")
    assert load_values(path) == {"rate": 1e-3, "names": ["a", "b"]}
    path.write_text("")
    assert load_values(path) == {}
    path.write_text("- 1")
    with pytest.raises(ValueError, match=r"values\.yaml: config: expected keys and values, found \[1\] \(list\)"):
        load_values(path)


@pytest.mark.parametrize(
    "values",
    [
        {"train_path": "a", "lr": 2, "betas": [0, 0.5]},
        {"learning_rate": 2, "data": "a", "optim": {"betas": [0, 0.5]}},
        {"optim": {"lr": 2}, "data": "a", "betas": [0, 0.5]},
    ],
)
def test_flat_values_move_into_the_nested_settings_that_have_them(values):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Steps:
        learning_rate: float = setting(1e-4, "lr")
        betas: tuple[float, float] = (0.9, 0.999)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Training:
        data: pathlib.Path = setting(dataclasses.MISSING, "train_path")
        optim: Steps = Steps()

    expected = Training(data=pathlib.Path("a"), optim=Steps(learning_rate=2.0, betas=(0.0, 0.5)))
    assert from_dict(Training, nested(Training, values)) == expected
    with pytest.raises(ValueError, match="unknown key 'beta'; did you mean 'betas'"):
        nested(Training, {"beta": 1})
    with pytest.raises(ValueError, match="learning_rate is given twice"):
        nested(Training, {"lr": 1, "optim": {"learning_rate": 1}})
