"""Tokens -> weights on them, at three levels: which tokens are kept, which channels speak, what each
finding looked at.

Knows masks and keep weights: a key with weight 0 is not there, for anyone. Knows nothing of images,
millimetres or reports.
"""

# B batch, N tokens of one grid, S tokens attended to, Q tokens that ask, H heads, E width of a head,
# D width, C channels, F findings, K kept tokens

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mla_med.model.convolution import is_plain_inference


def weighted_attention(
    queries_BHQE: Tensor,
    keys_BHSE: Tensor,
    values_BHSE: Tensor,
    weights_BS: Tensor,
    keep_self: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention where key s counts weights_BS times: e^score G / sum e^score G, 0 where nothing counts.
    Also returns the attention and the log of the mean of e^score over the keys that count."""
    scores_BHQS = queries_BHQE @ keys_BHSE.transpose(-1, -2) / math.sqrt(queries_BHQE.shape[-1])
    counts_BHQS = weights_BS[:, None, None, :].expand_as(scores_BHQS)
    if keep_self:
        order_S = torch.arange(weights_BS.shape[1], device=weights_BS.device)
        eye_SS = order_S == order_S[:, None]
        counts_BHQS = torch.where(eye_SS, torch.ones_like(counts_BHQS), counts_BHQS)
    seen_BHQS = scores_BHQS.detach().masked_fill(counts_BHQS.detach() <= 0, -torch.inf)
    top_BHQ1 = seen_BHQS.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    # Unseen keys may exceed the top; the bound keeps e^score finite so that 0 times it is 0.
    exp_BHQS = (scores_BHQS - top_BHQ1).clamp(max=10.0).exp() * counts_BHQS
    total_BHQ1 = exp_BHQS.sum(-1, keepdim=True).clamp(min=1e-9)
    attention_BHQS = exp_BHQS / total_BHQ1
    count_BHQ1 = counts_BHQS.detach().sum(-1, keepdim=True).clamp(min=1.0)
    strength_BHQ = (top_BHQ1 + torch.log(total_BHQ1 / count_BHQ1)).squeeze(-1)
    return attention_BHQS @ values_BHSE, attention_BHQS, strength_BHQ


def _weighted(q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, weights_BS: Tensor) -> Tensor:
    """What weighted_attention(keep_self=True) attends to, without its maps: e^score G = e^(score + log G)."""
    bias_B1SS = weights_BS.log()[:, None, None, :].repeat(1, 1, q_BHSE.shape[2], 1)
    bias_B1SS.diagonal(dim1=-2, dim2=-1).zero_()
    return nn.functional.scaled_dot_product_attention(q_BHSE, k_BHSE, v_BHSE, bias_B1SS)


def split_heads(x_BSD: Tensor, heads: int) -> Tensor:
    return x_BSD.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x_BHSE: Tensor) -> Tensor:
    return x_BHSE.transpose(1, 2).flatten(2)


def feed_forward(width: int, ratio: int = 2) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width)
    )


def masked_mean(x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    weights_BS1 = mask_BS.to(x_BSD.dtype).unsqueeze(-1)
    return (x_BSD * weights_BS1).sum(1) / weights_BS1.sum(1).clamp(min=1e-6)


class MaskedTransformerBlock(nn.Module):
    """Pre-norm self-attention and feed-forward; a key counts as often as its weight says, for all but
    itself."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = feed_forward(width)

    def forward(self, x_BSD: Tensor, weights_BS: Tensor) -> Tensor:
        q, k, v = (split_heads(x, self.heads) for x in self.qkv(self.norm(x_BSD)).chunk(3, -1))
        if is_plain_inference(x_BSD):
            attended = _weighted(q, k, v, weights_BS)
        else:
            attended, _, _ = weighted_attention(q, k, v, weights_BS, keep_self=True)
        x_BSD = x_BSD + self.out(join_heads(attended))
        return x_BSD + self.feed_forward(x_BSD)


# Level 1: which tokens are kept


class DynamicWeightGenerator(nn.Module):
    """Score of each token from itself and the mean of all valid tokens: W2 tanh(W1 x + b1) + b2."""

    def __init__(self, width: int):
        super().__init__()
        self.local = nn.Linear(width, width)
        self.context = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1)

    def forward(self, x_BND: Tensor, mask_BN: Tensor) -> Tensor:
        x_BND = blank_padding(x_BND, mask_BN)
        context_B1D = masked_mean(x_BND, mask_BN).unsqueeze(1)
        return self.score(torch.tanh(self.local(x_BND) + self.context(context_B1D))).squeeze(-1)


def token_weights(scores_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """alpha: the softmax of the scores over the valid tokens; padding has exactly 0."""
    alpha_BN = scores_BN.masked_fill(~mask_BN, -1e9).softmax(-1)
    return alpha_BN * mask_BN


def blank_padding(x_BND: Tensor, mask_BN: Tensor) -> Tensor:
    return torch.where(mask_BN.unsqueeze(-1), x_BND, torch.zeros_like(x_BND))


FIRST = 1e4
"""More than scores differ by."""


def keep_count(valid_B: Tensor, keep_ratio: float, budget: int) -> Tensor:
    """How many tokens of each sample are kept; at least one of a sample that has any."""
    return torch.ceil(valid_B * keep_ratio).clamp(max=budget).long()


def choose_kept(
    scores_BN: Tensor,
    mask_BN: Tensor,
    keep_ratio: float,
    budget: int,
    noisy: bool = False,
    of_B: Tensor | None = None,
    first_BN: Tensor | None = None,
) -> Tensor:
    """The top K valid tokens of each sample, K a share of `of_B` (of the valid ones where None), before all
    others those of `first_BN`; `noisy` adds logistic (the difference of two Gumbel) noise, so that training
    tries others."""
    count_B = keep_count(mask_BN.sum(1) if of_B is None else of_B, keep_ratio, budget)
    scores_BN = scores_BN.detach()
    if noisy:
        uniform_BN = torch.rand_like(scores_BN).clamp(1e-6, 1 - 1e-6)
        scores_BN = scores_BN + torch.logit(uniform_BN)
    if first_BN is not None:
        scores_BN = scores_BN + FIRST * first_BN
    order_BN = order_of(scores_BN.masked_fill(~mask_BN, -torch.inf), descending=True)
    rank_BN = order_of(order_BN)
    return (rank_BN < count_B[:, None]) & mask_BN


def best_of_each_slice(
    scores_BN: Tensor, mask_BN: Tensor, slice_BN: Tensor, slices: int, least: int
) -> Tensor:
    """So many of the valid tokens of every slice, those with the largest scores."""
    best_BN = torch.zeros_like(mask_BN)
    for number in range(slices):
        best_BN = best_BN | choose_kept(scores_BN, mask_BN & (slice_BN == number), 1.0, least)
    return best_BN


def order_of(x_BN: Tensor, descending: bool = False) -> Tensor:
    """Stable argsort along the last axis."""
    if torch.jit.is_tracing():
        # ONNX has no sort; its TopK puts the lower of equal indices first, and so is stable
        return x_BN.topk(x_BN.shape[1], dim=1, largest=descending).indices
    return x_BN.argsort(dim=1, descending=descending, stable=True)


def keep_ratio_loss(scores_BN: Tensor, mask_BN: Tensor, keep_BN: Tensor) -> Tensor:
    """Holds the mean keep probability at the share that is kept."""
    count_B = mask_BN.sum(1).clamp(min=1)
    mean_B = (scores_BN.sigmoid() * mask_BN).sum(1) / count_B
    return ((mean_B - keep_BN.sum(1) / count_B) ** 2).mean()


@dataclass(frozen=True, slots=True)
class Kept:
    """Tokens after selection; the last one is the fused rest."""

    tokens_BSD: Tensor
    weights_BS: Tensor
    """How often a token counts as a key: 0 for dropped ones and padding."""
    index_BS: Tensor
    """Place in the grid they came from; -1 for the fused rest."""


def keep_masked(x_BND: Tensor, scores_BN: Tensor, mask_BN: Tensor, keep_BN: Tensor) -> Kept:
    """All tokens stay, dropped ones with weight 0; gradients reach every score straight through."""
    index_BN = torch.arange(x_BND.shape[1], device=x_BND.device).expand(x_BND.shape[0], -1)
    weights_BN = straight_through(keep_BN, scores_BN) * mask_BN
    return with_rest(blank_padding(x_BND, mask_BN), weights_BN, index_BN, x_BND, scores_BN, mask_BN, keep_BN)


def keep_gathered(
    x_BND: Tensor, scores_BN: Tensor, mask_BN: Tensor, keep_BN: Tensor, largest: int | None = None
) -> Kept:
    """Only kept tokens stay, in the order of the grid, so that later layers cost less. `largest`: the most
    that any sample keeps, where it is known (a graph for another runtime has to know its shapes)."""
    if largest is None:
        largest = int(keep_BN.sum(1).max())
    index_BK = order_of((~keep_BN).to(torch.int32))[:, :largest]
    x_BKD = gather_tokens(blank_padding(x_BND, mask_BN), index_BK)
    weights_BK = (straight_through(keep_BN, scores_BN) * keep_BN).gather(1, index_BK)
    return with_rest(x_BKD, weights_BK, index_BK, x_BND, scores_BN, mask_BN, keep_BN)


def straight_through(keep_BN: Tensor, scores_BN: Tensor) -> Tensor:
    """The hard 0 or 1 forward, the sigmoid of the score backward."""
    soft_BN = scores_BN.sigmoid()
    return keep_BN.to(soft_BN.dtype) + (soft_BN - soft_BN.detach())


def gather_tokens(x_BND: Tensor, index_BK: Tensor) -> Tensor:
    return x_BND.gather(1, index_BK.unsqueeze(-1).expand(-1, -1, x_BND.shape[-1]))


def with_rest(
    kept_BSD: Tensor,
    weights_BS: Tensor,
    index_BS: Tensor,
    x_BND: Tensor,
    scores_BN: Tensor,
    mask_BN: Tensor,
    keep_BN: Tensor,
) -> Kept:
    """Append one token: the dropped ones, averaged by their alpha."""
    alpha_BN = token_weights(scores_BN, mask_BN & ~keep_BN)
    rest_B1D = (alpha_BN.unsqueeze(-1) * blank_padding(x_BND, mask_BN)).sum(1, keepdim=True)
    any_rest_B1 = (mask_BN & ~keep_BN).any(1, keepdim=True)
    return Kept(
        torch.cat([kept_BSD, rest_B1D], 1),
        torch.cat([weights_BS, any_rest_B1.to(weights_BS.dtype)], 1),
        torch.cat([index_BS, index_BS.new_full((len(index_BS), 1), -1)], 1),
    )


# Level 2: which channels speak


class ChannelGate(nn.Module):
    """A sigmoid gate per sample and channel, from the channel's mean over the volume."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(8, channels // 2)
        self.gates = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def weights_BC(self, x_BCIJK: Tensor) -> Tensor:
        return self.gates(x_BCIJK.mean(dim=(2, 3, 4))).sigmoid()

    def forward(self, x_BCIJK: Tensor) -> Tensor:
        return x_BCIJK * self.weights_BC(x_BCIJK)[:, :, None, None, None]


# Level 3: what each finding looked at


class FindingQueries(nn.Module):
    """One learned query per finding code attends to the fused tokens."""

    def __init__(self, findings: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.queries_FD = nn.Parameter(torch.empty(findings, width))
        self.norm = nn.LayerNorm(width)
        self.keys_values = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = feed_forward(width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.queries_FD)

    def forward(self, x_BSD: Tensor, weights_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (B, F, D), evidence weights (B, F, S) and the strength of the match (B, F), which
        a softmax alone forgets."""
        queries_BFD = self.queries_FD.expand(x_BSD.shape[0], -1, -1)
        k, v = (split_heads(x, self.heads) for x in self.keys_values(self.norm(x_BSD)).chunk(2, -1))
        attended, attention_BHFS, strength_BHF = weighted_attention(
            split_heads(queries_BFD, self.heads), k, v, weights_BS
        )
        embeddings_BFD = queries_BFD + self.out(join_heads(attended))
        embeddings_BFD = embeddings_BFD + self.feed_forward(embeddings_BFD)
        return embeddings_BFD, attention_BHFS.mean(1), strength_BHF.mean(1)
