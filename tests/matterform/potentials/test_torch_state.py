import os
import warnings

import pytest

from matterform.potentials.torch_state import (
    TRUST_ALL_FILES,
    check_device,
    check_path,
    torch_threads,
    unchanged_process,
)

torch = pytest.importorskip("torch")


def test_what_a_package_changes_is_undone_even_when_it_fails(monkeypatch, capsys):
    monkeypatch.setenv(TRUST_ALL_FILES, "0")
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision()

    def load():
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        os.environ[TRUST_ALL_FILES] = "1"
        print("hello")  # noqa: T201
        raise KeyError

    with pytest.raises(KeyError), unchanged_process():
        load()
    assert (torch.get_default_dtype(), torch.get_float32_matmul_precision()) == before
    assert os.environ[TRUST_ALL_FILES] == "0"
    assert capsys.readouterr().out == ""


def test_an_absent_setting_stays_absent_and_warnings_are_kept_back(monkeypatch):
    monkeypatch.delenv(TRUST_ALL_FILES, raising=False)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with unchanged_process():
            os.environ[TRUST_ALL_FILES] = "1"
            warnings.warn("of no interest", stacklevel=1)
    assert TRUST_ALL_FILES not in os.environ
    assert not any("of no interest" in str(warning.message) for warning in heard)


def test_devices_are_those_that_are_here():
    check_device("cpu")
    for absent in ("cuda:77", "gpu", ""):
        with pytest.raises(ValueError, match="there is cpu"):
            check_device(absent)


def test_a_path_must_be_given_and_exist(tmp_path):
    assert check_path("Orb", tmp_path, "a file") == tmp_path
    with pytest.raises(ValueError, match="Orb needs the path of a file"):
        check_path("Orb", None, "a file")
    with pytest.raises(FileNotFoundError, match="absent does not exist; Orb needs a file"):
        check_path("Orb", tmp_path / "absent", "a file")


def test_threads_are_given_back_after_a_failure():
    before, during = torch.get_num_threads(), []

    def fail():
        during.append(torch.get_num_threads())
        raise KeyError

    with pytest.raises(KeyError), torch_threads(before + 1):
        fail()
    assert during == [before + 1]
    assert torch.get_num_threads() == before
