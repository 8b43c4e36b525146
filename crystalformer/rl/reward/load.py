"""Builds the reward that a `RewardConfig` describes; missing settings are reported before anything is loaded."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from crystalformer.rl.config import CUSTOM, RewardConfig
from crystalformer.rl.reward import combine
from crystalformer.rl.reward.base import Reward
from crystalformer.rl.reward.custom import Workers, custom_reward, load_function, open_workers
from crystalformer.rl.reward.energy import ehull_reward, force_reward
from crystalformer.rl.reward.pairwise import pair_reward
from crystalformer.rl.reward.property import dielectric_reward, property_reward
from matterform.evaluation.composition import compositional_validity
from matterform.io.files import existing
from matterform.potentials.base import Potential, PropertyModel
from matterform.potentials.config import PotentialConfig, PropertyConfig
from matterform.potentials.load import load_property
from matterform.potentials.open import open_potential
from matterform.potentials.torch_state import torch_threads
from matterform.stability.hull import open_hull
from matterform.stability.references import load_references


class RewardContext(NamedTuple):
    """Resources shared by the rewards of a run; each is opened on first use."""

    potential: Callable[[], Potential]
    workers: Callable[[], Workers | None]  # processes for a user's function; None: computed in this process


class RewardKind(NamedTuple):
    """How to make a reward from its name and the config, and the config fields that it uses."""

    make: Callable[[str, RewardConfig, RewardContext], Reward]
    needs: tuple[tuple[str, str], ...] = ()  # required fields, each with its meaning
    uses: tuple[str, ...] = ()  # optional fields, of the reward or of the potential


def _make_ehull(name: str, config: RewardConfig, context: RewardContext) -> Reward:
    assert config.convex_path is not None
    potential, hull = context.potential(), open_hull(config.convex_path)
    references = None if config.references is None else load_references(config.references)
    if hull.kind == "formation" and references is None:
        raise ValueError(
            f"{config.convex_path} holds energies of formation, so the reward {name} needs {_flag('references')}, "
            f"energies of the elements in {potential.name}; `matterform references` fits them"
        )
    return ehull_reward(potential, hull, references, config.relax_steps, config.reward_clip)


def _make_property(name: str, config: RewardConfig, context: RewardContext) -> Reward:
    assert config.target is not None
    model = _load_property_model(config.property_path, config.fidelity, config)
    return property_reward(model, config.target, config.property_form, config.reward_clip)


def _make_dielectric(name: str, config: RewardConfig, context: RewardContext) -> Reward:
    gap_model = _load_property_model(config.property_path, config.fidelity, config)
    return dielectric_reward(_load_property_model(config.dielectric_path, None, config), gap_model)


def _load_property_model(path: pathlib.Path | None, fidelity: int | None, config: RewardConfig) -> PropertyModel:
    return load_property(
        PropertyConfig(
            property_path=path,
            fidelity=fidelity,
            device=config.potential.device,
            property_batch_size=config.property_batch_size,
        )
    )


# `threads` is allowed with every reward, because a user's function may compute with PyTorch as well.
POTENTIAL_FIELDS = tuple(field.name for field in dataclasses.fields(PotentialConfig) if field.name != "threads")
PROPERTY_FIELDS = ("fidelity", "property_batch_size", "device")
KINDS = {
    "ehull": RewardKind(
        _make_ehull,
        needs=(("convex_path", "the reference hull"),),
        uses=("references", "relax_steps", "unknown_penalty", "reward_clip", *POTENTIAL_FIELDS),
    ),
    "force": RewardKind(
        lambda name, config, context: force_reward(context.potential(), config.stress_weight),
        uses=("stress_weight", *POTENTIAL_FIELDS),
    ),
    "property": RewardKind(
        _make_property,
        needs=(("property_path", "the folder of the property model"), ("target", "the value to reach")),
        uses=("property_form", "reward_clip", *PROPERTY_FIELDS),
    ),
    "dielectric": RewardKind(
        _make_dielectric,
        needs=(("dielectric_path", "the dielectric tensor's model"), ("property_path", "the band gap's model")),
        uses=PROPERTY_FIELDS,
    ),
    "pair": RewardKind(lambda name, config, context: pair_reward()),
    CUSTOM: RewardKind(
        lambda name, config, context: custom_reward(name, config.custom_worst, context.workers()),
        uses=("custom_worst", "reward_workers"),
    ),
}


@contextlib.contextmanager
def open_reward(config: RewardConfig) -> Iterator[Reward]:
    """Opens the reward that `config` describes; its models and worker processes are closed at the end of the block.

    Raises:
        ValueError: a required setting is missing, or a file has the wrong content.
        FileNotFoundError: a file does not exist.
        ImportError: a package is not installed; the message names the extra to install.
    """
    check_reward(config)
    with contextlib.ExitStack() as stack:
        context = RewardContext(
            functools.cache(lambda: stack.enter_context(open_potential(config.potential))),
            functools.cache(lambda: stack.enter_context(open_workers(config.reward_workers))),
        )
        parts = [_kind(name).make(name, config, context) for name in config.reward]
        # Set after the models are loaded, which imports PyTorch.
        stack.enter_context(torch_threads(config.potential.threads))
        weights = config.weights or (1.0,) * len(parts)
        alone = len(parts) == 1 and weights == (1.0,)
        reward = parts[0] if alone else combine.weighted_sum(list(zip(weights, parts, strict=True)))
        yield _with_extras(reward, config)


def check_reward(config: RewardConfig) -> None:
    """Checks everything that can be checked before anything is loaded.

    Raises:
        ValueError: a required setting is missing, a setting has no effect, or a user's function does not exist.
        FileNotFoundError: a file does not exist.
        ImportError: a package is not installed; the message names the extra to install.
    """
    for name in config.reward:
        for field, meaning in _kind(name).needs:
            if getattr(config, field) is None:
                raise ValueError(f"the reward {name} needs {_flag(field)}, {meaning}")
        if ":" in name:
            load_function(name)
    _check_unused(config)
    if config.novelty_bonus and config.novelty_reference is None:
        raise ValueError(f"{_flag('novelty_bonus')} needs {_flag('novelty_reference')}, a file of known crystals")
    for field in ("convex_path", "references", "property_path", "dielectric_path", "novelty_reference"):
        if getattr(config, field) is not None:
            existing(getattr(config, field))
    if config.composition_penalty:
        compositional_validity([])  # raises ImportError if SMACT is not installed


def _check_unused(config: RewardConfig) -> None:
    """Raises ValueError if a setting differs from its default and none of the chosen rewards uses it."""
    chosen = {name if name in KINDS else CUSTOM for name in config.reward}
    for settings in (config, config.potential):
        for field in dataclasses.fields(settings):
            users = [name for name, kind in KINDS.items() if field.name in (*dict(kind.needs), *kind.uses)]
            if users and not chosen & set(users) and getattr(settings, field.name) != field.default:
                raise ValueError(
                    f"{_flag(field.name)} does nothing with the reward {' + '.join(config.reward)}; "
                    f"it is for {' and '.join(users)}"
                )
    if config.novelty_reference is not None and not config.novelty_bonus:
        raise ValueError(f"{_flag('novelty_reference')} does nothing without {_flag('novelty_bonus')}")


def _with_extras(reward: Reward, config: RewardConfig) -> Reward:
    """The reward clipped, then with its penalties and bonuses."""
    if config.reward_low is not None or config.reward_high is not None:
        low = -np.inf if config.reward_low is None else config.reward_low
        reward = combine.clipped(reward, low, np.inf if config.reward_high is None else config.reward_high)
    if config.validity_penalty:
        reward = combine.with_validity_penalty(reward, config.validity_penalty)
    if config.composition_penalty:
        reward = combine.with_composition_penalty(reward, config.composition_penalty)
    if config.unknown_penalty:
        reward = combine.with_unknown_penalty(reward, config.unknown_penalty)
    if config.uniqueness_bonus:
        reward = combine.with_uniqueness_bonus(reward, config.uniqueness_bonus)
    if config.novelty_bonus:
        assert config.novelty_reference is not None
        reward = combine.with_novelty_bonus(reward, config.novelty_bonus, config.novelty_reference)
    return reward


def _kind(name: str) -> RewardKind:
    return KINDS.get(name, KINDS[CUSTOM])


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"
