"""Which structures are trained on and which are held out."""

import dataclasses
import logging

import numpy as np
import pytest

from atomformer.config import TrainConfig
from atomformer.data.dataset import atom_counts, write_dataset
from atomformer.data.rows import check_row
from atomformer.data.split import load_split
from atomformer.data.tables import write_parquet


def rows(count: int = 20):
    """Structures that their property `name` tells apart."""
    return [check_row({"input_ids": [1], "coords": [[0.0, 0.0, 0.0]], "name": float(i)}) for i in range(count)]


def names(dataset) -> list[float]:
    return dataset.structures["name"].tolist()


@pytest.fixture(params=["folder", "table"])
def config(request, tmp_path):
    """A run on 20 structures that are memory-mapped or in memory."""
    path = tmp_path / ("data" if request.param == "folder" else "data.parquet")
    (write_dataset if request.param == "folder" else write_parquet)(path, rows())
    return TrainConfig(train=path, run_dir=tmp_path / "run", validation_fraction=0.25)


def test_a_fraction_is_held_out_and_the_seed_chooses_it(config):
    first, again = load_split(config), load_split(config)
    held_out, kept = names(first.validation), [names(first.train)[i] for i in first.rows]
    assert len(held_out) == 5
    assert sorted(held_out + kept) == list(range(20))
    assert names(again.validation) == held_out
    other = load_split(dataclasses.replace(config, seed=1))
    assert names(other.validation) != held_out
    # A memory-mapped set is not copied.
    assert len(atom_counts(first.train)) == (20 if isinstance(first.train.offsets, np.memmap) else 15)


def test_nothing_or_everything_held_out(config):
    whole = load_split(dataclasses.replace(config, validation_fraction=0.0))
    assert whole.validation is None
    assert whole.rows.tolist() == list(range(20))
    with pytest.raises(ValueError, match=r"validation_fraction 0\.99 leaves none of 20 structures"):
        load_split(dataclasses.replace(config, validation_fraction=0.99))


def test_given_validation_structures_leave_the_training_set_whole(config, tmp_path):
    write_dataset(tmp_path / "others", rows(3))
    split = load_split(dataclasses.replace(config, validation=tmp_path / "others"))
    assert names(split.validation) == [0, 1, 2]
    assert len(split.rows) == 20


def test_splits_of_a_hugging_face_folder(tmp_path):
    for name, count in (("train", 4), ("validation", 2)):
        write_parquet(tmp_path / f"{name}-00000-of-00001.parquet", rows(count))
    options = {"train": tmp_path, "run_dir": tmp_path / "run", "split": "train", "validation_split": "validation"}
    split = load_split(TrainConfig(**options))
    assert (len(split.rows), names(split.validation)) == (4, [0, 1])


def test_refused_structures_are_reported_once(tmp_path, caplog):
    (tmp_path / "data.xyz").write_text("1\n\nH 0 0 0\n2\n\nH 0 0 0\nH 0 0 0\n")
    config = TrainConfig(train=tmp_path / "data.xyz", run_dir=tmp_path / "run", validation_fraction=0.0)
    with caplog.at_level(logging.WARNING):
        split = load_split(config)
    assert len(split.rows) == 1
    (record,) = caplog.records
    assert (
        "1 of its structures cannot be used; the first is 1: coords: atoms 0 and 1 are at the same place"
        in record.message
    )
