"""Importing touches no device and no file and stays light; packages import each other as CONTRIBUTING.md says."""

import ast
import importlib.util
import json
import os
import pathlib
import pkgutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FAMILIES = ("crystalformer", "atomformer", "agedi")
PACKAGES = tuple(name for name in ("matterform", *FAMILIES) if (ROOT / name / "__init__.py").is_file())
HEAVY = (
    "ase",
    "gemmi",
    "lmdb",
    "matplotlib",
    "orbax",
    "pandas",
    "pymatgen",
    "pyxtal",
    "rich",
    "spglib",
    "tensorboardX",
    "torch",
    "tyro",
    "wandb",
)
# What every part of matterform may use, the training part included.
COMMON = ("matterform.config", "matterform.io.files", "matterform.io.tables", "matterform.progress")


def modules_of(package):
    """Dotted names of a package and of everything in it, entry points and data generators aside."""
    found = pkgutil.walk_packages([str(ROOT / package)], prefix=f"{package}.")
    return [package, *(module.name for module in found if not module.name.endswith("__main__"))]


def import_in_fresh_process(names):
    """Imports `names` where no device can be used; returns the modules loaded and the files opened."""
    code = (
        "import json, sys\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        f"for name in {names!r}: __import__(name)\n"
        "print(json.dumps([sorted(sys.modules), opened]))"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_backend"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_imports_without_a_device(package):
    modules, _ = import_in_fresh_process(modules_of(package))
    assert set(modules_of(package)) <= set(modules)


def test_the_missing_backend_would_be_noticed():
    code = "import jax; jax.numpy.zeros(3)"
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_backend"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "no_such_backend" in result.stderr


def test_importing_the_packages_loads_nothing_heavy():
    modules, _ = import_in_fresh_process([*PACKAGES, "matterform.training"])
    assert [name for name in HEAVY if name in modules] == []


def test_importing_settings_loads_neither_jax_nor_pymatgen_nor_torch():
    configs = ("matterform.config", "matterform.training.config", "matterform.potentials.config")
    families = ("crystalformer.config", "crystalformer.rl.config", "atomformer.config", "agedi.config")
    modules, _ = import_in_fresh_process([*configs, *families])
    assert [name for name in ("jax", "pydantic", *HEAVY) if name in modules] == []


def test_importing_opens_no_file_of_ours():
    _, opened = import_in_fresh_process([name for package in PACKAGES for name in modules_of(package)])
    ours = [path for path in opened if path.startswith(tuple(f"{ROOT / package}{os.sep}" for package in PACKAGES))]
    assert [path for path in ours if not path.endswith((".py", ".pyc")) and ".pyc." not in path] == []


def imported_modules(path):
    """Dotted names that a source file imports anywhere, in functions too."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            # `from matterform import training` names the module in the list, not in the base.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_in(module, room):
    """Whether a dotted name is `room` or inside it."""
    return module == room or module.startswith(f"{room}.")


def is_forbidden(importer, imported):
    """Whether the rules of CONTRIBUTING.md forbid that the module `importer` imports `imported`."""
    rooms = ("matterform", *FAMILIES)
    importer_room = next(room for room in rooms if is_in(importer, room))
    imported_room = next((room for room in rooms if is_in(imported, room)), None)
    if any(is_in(imported, room) for room in ("experiments", "benchmarks", "tests")):
        return True
    if imported_room is None:
        return False
    if importer_room != "matterform":
        return imported_room not in ("matterform", importer_room)
    if imported_room != "matterform":
        return True
    in_training = [is_in(name, "matterform.training") for name in (importer, imported)]
    return in_training[0] != in_training[1] and not any(is_in(imported, name) for name in COMMON)


@pytest.mark.parametrize(
    ("importer", "imported", "forbidden"),
    [
        ("crystalformer.cli", "atomformer.config", True),
        ("crystalformer.cli", "agedi", True),
        ("crystalformer.cli", "crystalformer.rl.ppo.loss", False),
        ("crystalformer.cli", "matterform.training.loop", False),
        ("matterform.cell", "crystalformer.symmetry.lattice", True),
        ("matterform.io.formats", "matterform.training.step", True),
        ("matterform.io.formats", "matterform.training", True),
        ("matterform.training.step", "matterform.io.formats.Record", True),
        ("matterform.training.step", "matterform.training.mesh", False),
        ("matterform.training.step", "matterform.config.load_config", False),
        ("matterform.training.step", "matterform.io.files.write_atomically", False),
        ("matterform.config", "matterform.training.state", True),
        ("agedi.cli", "experiments.mp20", True),
        ("agedi.cli", "benchmarks", True),
        ("agedi.cli", "numpy", False),
    ],
)
def test_rules_of_the_import_graph(importer, imported, forbidden):
    assert is_forbidden(importer, imported) is forbidden


def test_packages_import_each_other_as_designed():
    broken = []
    for package in ("matterform", *FAMILIES):
        for path in sorted((ROOT / package).rglob("*.py")):
            importer = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            broken += [f"{importer} imports {name}" for name in imported_modules(path) if is_forbidden(importer, name)]
    assert broken == []
