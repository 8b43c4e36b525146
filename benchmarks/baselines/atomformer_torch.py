"""A plain implementation of AtomFormer in PyTorch, a baseline for our network and training step.

Modules have the names of the published weights, so `load_state_dict` reads `model.safetensors` as it is. It needs only
torch, so it also runs in a separate environment.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SYSTEM_TOKEN, SYSTEM_TYPE = 122, 3
NUM_FEATURES, NUM_TOKEN_TYPES = 17, 4


class GaussianEmbedding(nn.Module):
    """k normal densities at the distances (Å), which are first scaled and shifted by the pair of tokens."""

    def __init__(self, vocab_size: int, k: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.means, self.stds = nn.Embedding(1, k), nn.Embedding(1, k)
        self.mul, self.bias = nn.Embedding((vocab_size + 1) ** 2, 1), nn.Embedding((vocab_size + 1) ** 2, 1)
        nn.init.uniform_(self.means.weight, 0, 3)
        nn.init.uniform_(self.stds.weight, 0, 3)
        nn.init.ones_(self.mul.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, tokens: Tensor, distances: Tensor) -> Tensor:
        pairs = tokens[:, :, None] * self.vocab_size + tokens[:, None]
        u = self.mul(pairs) * distances[..., None] + self.bias(pairs)
        std = self.stds.weight.abs() + 1e-5
        return torch.exp(-0.5 * ((u - self.means.weight) / std) ** 2) / (math.sqrt(2 * math.pi) * std)


class Block(nn.Module):
    """Attention and MLP in parallel; the attention is biased by this block's own projection of the pair embedding."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, k: int) -> None:
        super().__init__()
        self.num_heads, self.hidden, head_dim = num_heads, mlp_ratio * dim, dim // num_heads
        self.in_norm, self.q_norm, self.k_norm = nn.LayerNorm(dim), nn.LayerNorm(head_dim), nn.LayerNorm(head_dim)
        self.in_proj = nn.Linear(dim, self.hidden + 3 * dim, bias=False)
        self.out_proj = nn.Linear(self.hidden + dim, 2 * dim, bias=False)
        self.pos_embed_ff_norm, self.gaussian_proj = nn.LayerNorm(k), nn.Linear(k, 1)

    def forward(self, x: Tensor, pair_embedding: Tensor, padding: Tensor) -> Tensor:
        b, n, d = x.shape
        mlp, query, key, value = self.in_proj(self.in_norm(x)).split([self.hidden, d, d, d], dim=-1)
        query, key, value = (part.view(b, n, self.num_heads, -1).transpose(1, 2) for part in (query, key, value))
        bias = self.gaussian_proj(self.pos_embed_ff_norm(pair_embedding)).permute(0, 3, 1, 2) + padding
        attended = functional.scaled_dot_product_attention(self.q_norm(query), self.k_norm(key), value, attn_mask=bias)
        attended = attended.transpose(1, 2).reshape(b, n, d)
        first, second = self.out_proj(torch.cat([functional.gelu(mlp), attended], dim=-1)).chunk(2, dim=-1)
        return x + first + second


class Encoder(nn.Module):
    """Hidden states (b, 1 + n, dim) of a system token at the mean of the atoms, and of the atoms."""

    def __init__(
        self, *, dim: int, num_heads: int, depth: int, k: int, mlp_ratio: int = 4, vocab_size: int = 123
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, dim)
        self.token_type_embedding = nn.Embedding(NUM_TOKEN_TYPES, dim)
        self.metadata_vocab = nn.Embedding(vocab_size, NUM_FEATURES)
        self.metadata_vocab.requires_grad_(False)
        self.embed_metadata = nn.Linear(NUM_FEATURES, dim)
        self.gaussian_embed = GaussianEmbedding(vocab_size, k)
        self.blocks = nn.ModuleList([Block(dim, num_heads, mlp_ratio, k) for _ in range(depth)])

    def forward(self, tokens: Tensor, coords: Tensor, mask: Tensor, token_types: Tensor | None = None) -> Tensor:
        weight = mask[..., None].to(coords.dtype)
        mean = (coords * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        coords = torch.cat([mean, coords], dim=1)
        tokens = functional.pad(tokens, (1, 0), value=SYSTEM_TOKEN)
        mask = functional.pad(mask.bool(), (1, 0), value=True)
        x = self.embed_tokens(tokens) + self.embed_metadata(self.metadata_vocab(tokens))
        if token_types is not None:
            x = x + self.token_type_embedding(functional.pad(token_types, (1, 0), value=SYSTEM_TYPE))
        distances = (coords[:, :, None] - coords[:, None]).norm(dim=-1)
        pair_embedding = self.gaussian_embed(tokens, distances)
        padding = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -1e9)[:, None, None]
        for block in self.blocks:
            x = block(x, pair_embedding, padding)
        return x


class Structure2EnergyAndForces(nn.Module):
    """The pre-training model; returns states, formation energies (eV) and forces (eV/Å)."""

    def __init__(self, *, dim: int, **sizes: int) -> None:
        super().__init__()
        self.encoder = Encoder(dim=dim, **sizes)
        self.energy_norm, self.force_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.formation_energy_head = nn.Linear(dim, 1, bias=False)
        self.force_head = nn.Linear(dim, 3)

    def forward(self, tokens: Tensor, coords: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(tokens, coords, mask)
        energy = self.formation_energy_head(self.energy_norm(hidden[:, 0]))[:, 0]
        return hidden, energy, self.force_head(self.force_norm(hidden[:, 1:]))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """L1 error of the known energies plus that of the force components of real atoms."""
        _, energy, forces = self(batch["input_ids"], batch["coords"], batch["attention_mask"])
        known, real = batch["has_formation_energy"], batch["attention_mask"].bool()
        energy_loss = functional.l1_loss(energy[known], batch["formation_energy"][known])
        return energy_loss + functional.l1_loss(forces[real], batch["forces"][real])


class SystemRegression(nn.Module):
    """Labels of a whole structure, predicted from the system token."""

    def __init__(self, num_labels: int, *, dim: int, **sizes: int) -> None:
        super().__init__()
        self.encoder, self.cls_norm = Encoder(dim=dim, **sizes), nn.LayerNorm(dim)
        self.classification_head = nn.Linear(dim, num_labels, bias=False)

    def forward(self, tokens: Tensor, coords: Tensor, mask: Tensor, token_types: Tensor | None = None) -> Tensor:
        return self.classification_head(self.cls_norm(self.encoder(tokens, coords, mask, token_types)[:, 0]))
