import numpy as np
import pytest

from matterform.potentials.config import PotentialConfig
from matterform.potentials.open import open_potential


def test_workers_answer_in_order_what_one_process_answers(crystals, impossible):
    copper = crystals[-1]
    several = [copper.apply_strain(0.01 * k, inplace=False) for k in range(5)]
    several = [*several[:2], impossible["below"], several[2] * (2, 1, 1), crystals[0], *several[3:]]
    config = {
        "mlff_model": "ase",
        "mlff_variant": "ase.calculators.emt:EMT",
        "mlff_batch_size": 2,
        "mlff_corrected": False,
    }
    with (
        open_potential(PotentialConfig(**config)) as alone,
        open_potential(PotentialConfig(**config, workers=2)) as spread,
    ):
        assert (spread.name, spread.corrected) == (alone.name, alone.corrected)
        expected, found = (potential.predict(several, "stress") for potential in (alone, spread))
        assert len(spread.predict([], "energy").energy) == 0
    assert spread.corrected is False
    assert found.problems == expected.problems
    assert [index for index, problem in enumerate(found.problems) if problem] == [2, 4]
    np.testing.assert_array_equal(found.energy, expected.energy)
    np.testing.assert_array_equal(found.stress, expected.stress)
    for mine, theirs in zip(found.forces, expected.forces, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_what_cannot_be_loaded_is_the_same_error():
    config = PotentialConfig(mlff_model="ase", mlff_variant="ase.calculators.emt:Absent", workers=1)
    with pytest.raises(ValueError, match="Absent"), open_potential(config):
        pass


def test_a_dead_worker_is_one_clear_error(crystals, monkeypatch, tmp_path):
    # Spawned processes find the class in a module of its own.
    (tmp_path / "deadly_calculator.py").write_text(
        "import os, signal\nfrom ase.calculators.emt import EMT\n\nclass Deadly(EMT):\n"
        "    def calculate(self, *arguments, **settings):\n        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = PotentialConfig(mlff_model="ase", mlff_variant="deadly_calculator:Deadly", workers=1)
    with open_potential(config) as potential:
        for _ in range(2):  # the second time, the pool refuses the work
            with pytest.raises(ChildProcessError, match="died; use fewer workers"):
                potential.predict(crystals[-1:], "energy")
