import json

import numpy as np
import pandas as pd
import pytest

from matterform.evaluation.summary import EvaluationConfig, describe, evaluate, tabulate


def test_table_describes_each_crystal(rock_salt):
    row = tabulate([rock_salt()]).iloc[0].to_dict()
    # 4 (22.990 + 35.45) u in 5.64^3 Å^3, with 1 u/Å^3 = 1.66054 g/cm^3
    density = 4 * (22.990 + 35.45) * 1.66054 / 5.64**3
    assert row == {
        "formula": "NaCl",
        "num_atoms": 8,
        "num_atoms_primitive": 2,
        "volume_ang3": pytest.approx(5.64**3),
        "density_g_cm3": pytest.approx(density, rel=1e-4),
        "space_group": 225,
    }


def test_shares_are_those_of_the_table(rock_salt):
    structures = [rock_salt(), rock_salt(), rock_salt(0.9, anion="I"), rock_salt(anion="Br")]
    report = evaluate(structures, [225, 221, 225, 225], reference=[rock_salt(5.7)])
    shares = {name: metric["share"] for name, metric in report.summary["metrics"].items()}
    assert shares == {
        "valid": 0.75,
        "valid_between_sites": 0.75,
        "valid_strict": 0.75,
        "space_group_kept": 0.75,
        "space_group_kept_tight": 0.75,
        "unique": 0.75,
        "novel": 0.5,
    }
    assert report.table["space_group_requested"].tolist() == [225, 221, 225, 225]
    assert report.summary["reasons"] == {"atoms too close": 1}
    assert report.table["reason"].tolist()[2].startswith("atoms too close: 0.450 Å between Na")


def test_absurd_crystals_lower_the_shares_and_nothing_else(absurd, rock_salt):
    report = evaluate([*absurd.values(), rock_salt()], [225] * 8)
    assert report.summary["structures"] == 8
    assert report.summary["metrics"]["valid_strict"]["share"] == pytest.approx(1 / 8)
    assert report.summary["metrics"]["space_group_kept"]["share"] == pytest.approx(1 / 8)
    assert report.summary["reasons"] == {
        "atoms too close": 1,
        "cell or coordinates are not finite": 2,
        "cell volume is not finite": 1,
        "cell volume too small": 1,
        "no atoms": 1,
    }
    assert np.isnan(report.table["density_g_cm3"][0])


def test_summary_states_its_protocol_and_survives_json(rock_salt):
    summary = evaluate([rock_salt()], [225], config=EvaluationConfig(unique=False, strict=False)).summary
    assert json.loads(json.dumps(summary)) == summary
    assert set(summary["metrics"]) == {"valid", "valid_between_sites", "space_group_kept", "space_group_kept_tight"}
    protocol = summary["protocol"]
    assert protocol["min_distance_ang"] == 0.5
    assert protocol["min_volume_ang3"] == 0.1
    assert protocol["symprec_ang"] == [0.1, 0.01]
    assert protocol["matcher"] == {"ltol": 0.2, "stol": 0.3, "angle_tol_deg": 5.0}
    assert protocol["reference_structures"] is None
    assert set(protocol["versions"]) == {"matterform", "pymatgen", "spglib"}


def test_text_gives_each_share_its_meaning(rock_salt):
    lines = describe(evaluate([rock_salt(), rock_salt(0.9)], [225, 225]).summary).splitlines()
    assert lines[0] == "2 crystals, not relaxed"
    assert lines[1].startswith("  50.0 %  valid: no distance below 0.5 Å")
    assert lines[-1] == "     1    not valid: atoms too close"


def test_wrong_input_is_refused(rock_salt):
    with pytest.raises(ValueError, match="at least one"):
        evaluate([])
    with pytest.raises(ValueError, match="expected 1 space groups, one per structure; found 2"):
        evaluate([rock_salt()], [225, 225])


def test_composition_is_judged_on_request(rock_salt):
    report = evaluate([rock_salt()], config=EvaluationConfig(composition=True))
    assert report.summary["metrics"]["valid_composition"]["share"] == 1
    assert report.summary["protocol"]["oxidation_states"] == "smact14"
    assert isinstance(report.table, pd.DataFrame)
