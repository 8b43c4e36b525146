"""The plain networks in PyTorch and JAX compute what the published model does, so comparing speed with them is fair."""

import json
from typing import Any

import jax
import numpy as np
import pytest

from atomformer.checkpoint.published import from_pretrained, to_published
from atomformer.data.structure import Structure
from benchmarks.baselines import atomformer as plain_atomformer

SIZES = ("dim", "num_heads", "depth", "k", "mlp_ratio", "vocab_size")


@pytest.fixture(scope="module")
def golden(golden_dir):
    """The folder of AtomFormer's golden values."""
    return golden_dir / "atomformer"


def torch_sizes(golden) -> dict[str, int]:
    """The sizes that the PyTorch modules take, under their published names."""
    config = json.loads((golden / "config.json").read_text())
    return {name: config[name] for name in SIZES}


def load_torch(model, path):
    """`model` with the weights of a safetensors file, every name of which must fit."""
    from safetensors.torch import load_file

    model.load_state_dict(load_file(path), strict=True)
    return model


def torch_batch(path) -> dict[str, Any]:
    """The golden inputs and labels as tensors."""
    import torch

    content = np.load(path)
    return {name: torch.from_numpy(content[name]) for name in content.files if content[name].dtype.kind in "bif"}


def jax_batch(values) -> Structure:
    """The golden inputs, padded as they are."""
    types = values.get("token_type_ids")
    return Structure(
        values["input_ids"].astype(np.int32),
        values["coords"],
        values["attention_mask"].astype(bool),
        None if types is None else types.astype(np.int32),
    )


def check_gradient_norms(got: dict[str, float], want) -> None:
    """Those of k_norm's and the pair bias's offsets are 0 but for rounding: a softmax ignores constants."""
    norms = np.array([got[name] for name in want["grad_names"]])
    np.testing.assert_allclose(norms, want["grad_norms"], rtol=1e-4, atol=1e-6)


def test_torch_s2ef_meets_golden(golden):
    pytest.importorskip("torch")
    from benchmarks.baselines.atomformer_torch import Structure2EnergyAndForces

    model = load_torch(Structure2EnergyAndForces(**torch_sizes(golden)), golden / "model.safetensors")
    want, batch = np.load(golden / "s2ef.npz"), torch_batch(golden / "s2ef.npz")
    outputs = model(batch["input_ids"], batch["coords"], batch["attention_mask"])
    for name, got in zip(("hidden", "energy_pred", "forces_pred"), outputs, strict=True):
        np.testing.assert_allclose(got.detach().numpy(), want[name], rtol=1e-4, atol=1e-5)
    loss = model.loss(batch)
    loss.backward()
    np.testing.assert_allclose(loss.item(), want["loss"], rtol=1e-5)
    gradients = {name: leaf.grad for name, leaf in model.named_parameters() if leaf.grad is not None}
    check_gradient_norms({name: float(gradient.norm()) for name, gradient in gradients.items()}, want)


def test_torch_regression_meets_golden(golden):
    pytest.importorskip("torch")
    from benchmarks.baselines.atomformer_torch import SystemRegression

    model = load_torch(SystemRegression(20, **torch_sizes(golden)), golden / "classifier.safetensors")
    want, batch = np.load(golden / "classifier.npz"), torch_batch(golden / "classifier.npz")
    got = model(batch["input_ids"], batch["coords"], batch["attention_mask"], batch["token_type_ids"])
    np.testing.assert_allclose(got.detach().numpy(), want["pred"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((got - batch["labels"]).abs().mean().item(), want["loss"], rtol=1e-5)


def test_jax_s2ef_meets_golden(golden):
    params, config, _ = from_pretrained(golden)
    want = dict(np.load(golden / "s2ef.npz"))
    batch = jax_batch(want)
    found = jax.jit(lambda params: plain_atomformer.forward(params, config, batch))(params)
    pairs = {"hidden": found.hidden, "energy_pred": found.formation_energy, "forces_pred": found.forces}
    for name, got in pairs.items():
        np.testing.assert_allclose(got, want[name], rtol=1e-4, atol=1e-5)

    def loss(params):
        labels = (want["formation_energy"], want["has_formation_energy"], want["forces"])
        return plain_atomformer.s2ef_loss(params, config, batch, *labels)

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, want["loss"], rtol=1e-5)
    published = to_published(gradients, config)
    check_gradient_norms({name: float(np.linalg.norm(gradient)) for name, gradient in published.items()}, want)


def test_jax_regression_meets_golden(golden):
    params, config, _ = from_pretrained(golden / "classifier.safetensors")
    want = dict(np.load(golden / "classifier.npz"))
    found = jax.jit(lambda params: plain_atomformer.forward(params, config, jax_batch(want)))(params)
    np.testing.assert_allclose(found.labels, want["pred"], rtol=1e-4, atol=1e-5)
