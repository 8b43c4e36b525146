"""Training examples of DPO: the pairs of a run with their reference log-probabilities, split and batched."""

import logging
import pathlib
import zlib

import numpy as np
from jaxtyping import Float

from crystalformer.config import TransformerConfig
from crystalformer.data.batches import bucket_lengths, make_take
from crystalformer.data.crystals import check_crystals, num_slots
from crystalformer.loss import log_prob
from crystalformer.network.parameters import Params
from crystalformer.rl.config import DpoConfig
from crystalformer.rl.dpo.loss import PreferencePair
from crystalformer.rl.dpo.pairs import PairData, Pairs, pairs_from_scores, read_pairs
from crystalformer.rl.dpo.rows import take_crystals
from matterform.io.tables import read_rows, write_table
from matterform.training.batches import BatchPlan, Take, make_batch_plan
from matterform.training.split import split_rows

logger = logging.getLogger(__name__)

# Crystals that the network's masks forbid have a log-probability of about -1e10 nats, whose differences are rounding.
IMPOSSIBLE = -1e6
PAIR_COLUMNS: tuple[str, ...] = ("chosen_row", "rejected_row", "reference_logp_chosen", "reference_logp_rejected")


def pair_sources(config: DpoConfig) -> str:
    """Where the pairs come from, for messages."""
    return str(config.scored) if config.scored is not None else f"{config.chosen} with {config.rejected}"


def load_pairs(config: DpoConfig, transformer: TransformerConfig) -> PairData:
    """Reads the pairs of a run, in the order of their files; a resumed run reads the same.

    Raises:
        ValueError: not exactly one source is given, it gives no pair, or the network cannot represent a crystal.
    """
    sizes = {"n_max": transformer.n_max, "workers": config.workers}
    two_files = config.chosen is not None or config.rejected is not None
    if two_files == (config.scored is not None):
        raise ValueError("give the pairs as chosen and rejected, or as one scored table")
    if config.scored is not None:
        data = pairs_from_scores(config.scored, config.pairing, **sizes)
    elif config.chosen is not None and config.rejected is not None:
        data = read_pairs(config.chosen, config.rejected, **sizes)
    else:
        missing = "chosen" if config.chosen is None else "rejected"
        raise ValueError(f"chosen and rejected go together; {missing} is missing")
    if data.refused:
        row, reason = next(iter(data.refused.items()))
        logger.warning("%d rows give no pair; the first is row %d: %s", len(data.refused), row, reason)
    for name, crystals in data.pairs._asdict().items():
        try:
            check_crystals(crystals, transformer)
        except ValueError as error:
            raise ValueError(f"the {name} crystals of {pair_sources(config)}: {error}") from error
    return data


def reference_log_prob(params: Params, config: TransformerConfig, pairs: Pairs) -> Float[np.ndarray, "p 2"]:
    """Log-probabilities (nats) of the chosen and the rejected crystals under the reference model, without dropout."""
    return np.stack([log_prob(params, config, crystals).total for crystals in pairs], -1).astype(np.float32)


def write_pairs(run_dir: pathlib.Path, data: PairData, logp_reference: Float[np.ndarray, "p 2"]) -> None:
    """Writes pairs.csv, with the rows of each pair and its reference log-probabilities, and refused.csv."""
    refused = ({"row": row, "reason": reason} for row, reason in data.refused.items())
    write_table(run_dir / "refused.csv", refused, ("row", "reason"))
    values = logp_reference.astype(np.float64)
    rows = ((*pair, *logp) for pair, logp in zip(data.rows.tolist(), values.tolist(), strict=True))
    write_table(run_dir / "pairs.csv", (dict(zip(PAIR_COLUMNS, row, strict=True)) for row in rows), PAIR_COLUMNS)


def read_reference(run_dir: pathlib.Path, data: PairData) -> Float[np.ndarray, "p 2"]:
    """Reads the reference log-probabilities (nats) of a run from its pairs.csv.

    Raises:
        FileNotFoundError: there is no pairs.csv.
        ValueError: it belongs to other pairs.
    """
    path = run_dir / "pairs.csv"
    rows = [[row[name] for name in PAIR_COLUMNS] for row in read_rows(path, PAIR_COLUMNS)]
    if [[int(cell) for cell in row[:2]] for row in rows] != data.rows.tolist():
        raise ValueError(f"cannot resume with other data: {path} names other rows than the files now give")
    return np.array([[float(cell) for cell in row[2:]] for row in rows], np.float32).reshape(-1, 2)


def fingerprint(pairs: Pairs, logp_reference: Float[np.ndarray, "p 2"]) -> dict[str, int]:
    """Number of pairs, and checksums of the crystals and of their reference log-probabilities."""
    checksum = 0
    for field in (*pairs.chosen, *pairs.rejected):
        checksum = zlib.crc32(np.ascontiguousarray(field).tobytes(), checksum)
    return {"pairs": len(logp_reference), "crc32": checksum, "reference_crc32": zlib.crc32(logp_reference.tobytes())}


def possible_pairs(data: PairData, logp_reference: Float[np.ndarray, "p 2"]) -> PreferencePair:
    """The pairs of crystals that the network can represent; others have forbidden Wyckoff letters, e.g. unsorted ones.

    Raises:
        ValueError: there are no such pairs.
    """
    possible = (logp_reference > IMPOSSIBLE).all(-1)
    if not possible.all():
        first = int(np.argmin(possible))
        logger.warning(
            "%d pairs left out, to which the weights give no probability; the first is of rows %d and %d",
            *(int((~possible).sum()), *data.rows[first]),
        )
    if not possible.any():
        raise ValueError("the weights give none of the pairs a probability; their sites must be sorted by W")
    return _take_pairs(PreferencePair(data.pairs.chosen, data.pairs.rejected, logp_reference), np.flatnonzero(possible))


def split_pairs(pairs: PreferencePair, config: DpoConfig) -> tuple[PreferencePair, PreferencePair | None]:
    """Pairs to train on, and held-out pairs (None if `validation_fraction` gives none).

    Raises:
        ValueError: all pairs would be held out.
    """
    count = len(pairs.logp_reference)
    rows = split_rows(count, config.validation_fraction, config.seed, "pairs")
    if not len(rows.held_out):
        return pairs, None
    return _take_pairs(pairs, rows.train), _take_pairs(pairs, rows.held_out)


def plan_pairs(pairs: PreferencePair, config: DpoConfig) -> BatchPlan:
    """Batches of pairs of similar length, which is the length of the longer crystal."""
    longer = np.maximum(num_slots(pairs.chosen), num_slots(pairs.rejected))
    return make_batch_plan(longer, config.batch_size, bucket_lengths(pairs.chosen.W.shape[1]), config.seed)


def make_pair_take(pairs: PreferencePair) -> Take:
    """A function that gathers pairs, cut to a bucket's length."""
    take_chosen, take_rejected = make_take(pairs.chosen), make_take(pairs.rejected)

    def take(rows: np.ndarray, length: int) -> PreferencePair:
        return PreferencePair(take_chosen(rows, length), take_rejected(rows, length), pairs.logp_reference[rows])

    return take


def _take_pairs(pairs: PreferencePair, rows: np.ndarray) -> PreferencePair:
    chosen, rejected = (take_crystals(crystals, rows) for crystals in (pairs.chosen, pairs.rejected))
    return PreferencePair(chosen, rejected, pairs.logp_reference[rows])
