"""How many crystals per second does our sampler draw, against the plain one of 105 full passes in the same run?

    python benchmarks/cases/crystalformer_sampling.py --out benchmarks/results/crystalformer_sampling.jsonl

Initial weights at the published sizes. Our speed depends on the lengths of the crystals, so the logit of padding is set
to give `--mean-sites` sites in the commonest space groups; the plain sampler's work is always the same. It takes
minutes per hundred crystals, so it draws fewer: arithmetic limits it at any batch size (see `--plain-batch 100`).
"""

import dataclasses
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import crystalformer
from benchmarks.baselines.crystalformer import make_plain_sampler
from benchmarks.timing import machine_limits, num_parameters, peak_rss_mib, report, time_call
from crystalformer.config import TransformerConfig
from crystalformer.network.parameters import Params, final_names, init_params
from crystalformer.sampling.sample import CPU_GROUP
from crystalformer.sampling.sampler import STRETCHES
from crystalformer.symmetry.wyckoff import symmetry_tables

# The 20 commonest space groups among 7,140 binary and ternary crystals of MP-20 (Materials Project, CC BY 4.0):
# group -> number of crystals; two thirds of all.
SPACEGROUP_COUNTS = {
    **{225: 995, 62: 416, 139: 406, 194: 353, 12: 308, 166: 283, 221: 273, 63: 247, 123: 155, 189: 143},
    **{71: 140, 164: 136, 129: 135, 15: 125, 187: 121, 227: 116, 2: 114, 191: 113, 148: 109, 216: 109},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes and options of the benchmark."""

    generation: Literal["rotary", "absolute"] = "rotary"  # kind of positions
    # number type of our activations; the plain sampler uses float32
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    batch: int = 100  # number of crystals per batch
    plain_batch: int = 10  # number of crystals per batch of the plain sampler
    repeats: int = 5  # number of timed runs after the first
    plain_repeats: int = 1  # number of timed runs of the plain sampler after the first
    mean_sites: float = 4.4  # mean number of sites per crystal; binary and ternary crystals of MP-20: 4.2
    quick: bool = False  # a small network and small batches, to see that it runs
    out: pathlib.Path | None = None  # file to which the result is appended as one line of JSON


def expected_sites(padding_logit: float, groups: np.ndarray, n_max: int) -> float:
    """Mean number of sites if padding has this logit and every letter that may follow has logit 0."""
    tables, letters = symmetry_tables(), np.arange(1, 28)
    means = []
    for G in groups:
        known = letters <= tables.num_letters[G - 1]
        fixed = tables.has_no_freedom[G - 1, 1:]
        follows = known & ((letters > letters[:, None]) | ((letters == letters[:, None]) & ~fixed[:, None]))
        step = follows / (follows.sum(1, keepdims=True) + np.exp(padding_logit))
        letter = known / known.sum()  # distribution of the site's letter; the remainder to 1 has ended
        sites = 0.0
        for _ in range(n_max - 1):
            sites += letter.sum()
            letter = letter @ step
        means.append(sites)
    return float(np.mean(means))


def padding_logit_for(mean_sites: float, groups: np.ndarray, n_max: int) -> float:
    """The padding logit whose expected number of sites is `mean_sites`, by bisection."""
    low, high = -20.0, 20.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if expected_sites(middle, groups, n_max) > mean_sites else (low, middle)
    return low


def with_padding_logit(params: Params, config: TransformerConfig, logit: float) -> Params:
    """Parameters whose output has `logit` as its bias of padding."""
    _, output = final_names(config)
    bias = jnp.asarray(params[output]["b"]).at[0].set(logit)
    return {**params, output: {**params[output], "b": bias}}


def work(sites: np.ndarray, config: TransformerConfig) -> dict[str, float]:
    """Tokens of the network, lanes computed for them, and their least cost (formulas: benchmarks/README.md)."""
    c, width, hidden = config, config.num_heads * config.key_size, config.widening_factor * config.model_size
    stops = np.array([*(stretch for stretch in STRETCHES if stretch < c.n_max), c.n_max]) * 5
    ends = 5 * sites + 1  # the padding letter is the last token of a crystal
    positions = np.arange(ends.max())
    lanes = CPU_GROUP * -(-(ends > positions[:, None]).sum(1) // CPU_GROUP)
    attended = stops[np.searchsorted(stops, positions, side="right")]  # attention reads all tokens of its stretch
    keys = width if c.generation == "rotary" else 0
    square = c.num_heads * c.model_size**2  # a product of two projections, as `fold_attention` makes them
    weights = (2 * c.model_size * width if keys else square) + square + 2 * c.model_size * hidden
    attention = c.num_heads * (c.model_size + (c.key_size if keys else c.model_size))
    itemsize = 2 if c.compute_dtype == "bfloat16" else 4
    return {
        "token_steps": int(ends.sum()),
        "lane_steps": int(lanes.sum()),
        "multiply_adds": float(c.num_layers * (lanes * (weights + attended * attention)).sum()),
        "weight_bytes": float(c.num_layers * itemsize * weights * len(lanes)),
        "cache_bytes": float(c.num_layers * itemsize * (lanes * attended * (keys + c.model_size)).sum()),
    }


def rates(times: dict[str, float], batch: int) -> dict[str, Any]:
    """Times of a batch with what follows from them."""
    return {
        "batch": batch,
        **times,
        "compile_s": times["first_s"] - times["steady_s"],
        "crystals_s": batch / times["steady_s"],
        "peak_rss_mib": peak_rss_mib(),
    }


def measure(options: Options) -> dict[str, Any]:
    """The results as one line of JSON: our sampler first, so that its peak of memory excludes the plain one."""
    sizes: dict[str, Any] = {"num_layers": 2, "num_heads": 2} if options.quick else {}
    config = TransformerConfig(generation=options.generation, compute_dtype=options.compute_dtype, **sizes)
    batch, plain_batch = (16, 2) if options.quick else (options.batch, options.plain_batch)
    shares = np.array([*SPACEGROUP_COUNTS.values()]) / sum(SPACEGROUP_COUNTS.values())
    groups = np.random.default_rng(0).choice([*SPACEGROUP_COUNTS], batch, p=shares).astype(np.int32)
    params = init_params(jax.random.key(0), config)
    params = with_padding_logit(params, config, padding_logit_for(options.mean_sites, groups, config.n_max))
    key = jax.random.key(1)

    def sample() -> crystalformer.Crystals:
        return crystalformer.sample(params, config, key, groups, batch_size=batch)

    ours = rates(time_call(sample, repeats=options.repeats), batch)
    sites = (sample().W > 0).sum(1)
    plain_groups = np.resize(groups, plain_batch)
    plain_config = dataclasses.replace(config, compute_dtype="float32")
    arguments = params, jax.random.split(key, plain_batch), plain_groups
    plain_times = time_call(make_plain_sampler(plain_config), *arguments, repeats=options.plain_repeats)
    plain = {**rates(plain_times, plain_batch), "note": "larger batches do not help: try --plain-batch 100"}
    return {
        "benchmark": "crystalformer_sampling",
        "quick": options.quick,
        "generation": config.generation,
        "dtype": config.compute_dtype,
        "num_parameters": num_parameters(params),
        "tokens": 5 * config.n_max,
        "mean_sites": float(sites.mean()),
        "max_sites": int(sites.max()),
        **work(sites, config),
        "ours": ours,
        "plain": plain,
        "ratio": ours["crystals_s"] / plain["crystals_s"],
        **machine_limits(),
    }


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    report(measure(options), options.out)
