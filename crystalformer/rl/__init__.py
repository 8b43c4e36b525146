"""Fine-tuning of CrystalFormer by rewards (PPO) and by preferences (DPO)."""

import importlib
from typing import Any

# Public name -> module; loaded when first used, because most of them import JAX.
_EXPORTS = {
    "DpoConfig": "config",
    "ObjectiveConfig": "config",
    "PairingConfig": "config",
    "PpoConfig": "config",
    "PreferenceConfig": "config",
    "RewardConfig": "config",
    "Reward": "reward.base",
    "Scores": "reward.base",
    "check_reward": "reward.load",
    "describe_problems": "reward.base",
    "ehull_reward": "reward.energy",
    "force_reward": "reward.energy",
    "make_scores": "reward.base",
    "open_reward": "reward.load",
    "train_dpo": "dpo.train",
    "train_ppo": "ppo.train",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
