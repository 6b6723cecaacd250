"""OpenVLA as one torch module, for training and for acting.

Submodule names are those of the published files; `weights.py` only has to rename LayerScale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vla_robot.policy.openvla.network.align import Projector, ProprioProjector
from vla_robot.policy.openvla.network.config import OpenVLAConfig
from vla_robot.policy.openvla.network.perceive import VisionBackbone
from vla_robot.policy.openvla.network.reason import build_llama

IGNORE = -100
"""Label of a position that has no loss."""


@dataclass(frozen=True)
class TrainingOutput:
    """Loss and metrics of one training batch.

    Attributes:
        loss: () mean cross-entropy over all labelled positions.
        token_accuracy: () share of action tokens predicted exactly.
        l1: () mean absolute difference of the bin centres, in normalised units.
    """

    loss: Tensor
    token_accuracy: Tensor
    l1: Tensor


class OpenVLA(nn.Module):
    """The model: maps pixels and a prompt to logits."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_backbone = VisionBackbone(config)
        self.language_model = build_llama(config)
        llm_dim = self.language_model.config.hidden_size
        self.projector = Projector(self.vision_backbone.dim, llm_dim, fused=len(config.timm_model_ids) == 2)
        self.proprio_projector = ProprioProjector(config.proprio_dim, llm_dim) if config.proprio_dim else None

    def embed(self, pixels: Tensor, input_ids: Tensor, state: Tensor | None) -> Tensor:
        """Perceive and align: return the multimodal sequence of BOS, patches, state and the rest of the text.

        Args:
            pixels: (B, N, C, S, S) normalised.
            input_ids: (B, L) int64, BOS first.
            state: (B, proprio_dim) in [-1, 1], or None for a policy without proprioception.

        Returns:
            (B, L + N * P (+ 1), D).
        """
        return self.align(self.vision_backbone(pixels), input_ids, state)

    def align(self, features: Tensor, input_ids: Tensor, state: Tensor | None) -> Tensor:
        """Return `embed` from the towers' features, (B, N * P, vision_dim)."""
        text = self.language_model.model.embed_tokens(input_ids)
        seen = [self.projector(features)]
        if self.proprio_projector is not None:
            assert state is not None
            seen.append(self.proprio_projector(state))
        return torch.cat([text[:, :1], *seen, text[:, 1:]], dim=1)

    def forward(
        self, pixels: Tensor, input_ids: Tensor, labels: Tensor, state: Tensor | None, smoothing: float = 0.0
    ) -> TrainingOutput:
        """Return the training loss and metrics of a right-padded batch.

        The causal mask already hides padding at the right from every labelled position, so no padding
        mask is needed.

        Args:
            pixels: (B, N, C, S, S).
            input_ids: (B, L) int64.
            labels: (B, L) int64, IGNORE where there is no loss.
            state: (B, proprio_dim) or None.
            smoothing: standard deviation, in bins, of a Gaussian that spreads each action label over its neighbours;
                0 is the reference. Neighbouring bins are almost right, which plain cross-entropy ignores.
        """
        logits, targets, _ = self._predict(pixels, input_ids, labels, state)
        return self._score(logits, targets, smoothing)

    def answers_match(self, pixels: Tensor, input_ids: Tensor, labels: Tensor, state: Tensor | None) -> Tensor:
        """Return (B,) bool: whether greedy decoding over the words would give exactly a row's labels.

        One pass is enough: as long as each token is the label, the next one depends on the labels before it.

        Args:
            pixels: as in `forward`.
            input_ids: as in `forward`.
            labels: as in `forward`; words and the end token.
            state: as in `forward`.
        """
        logits, targets, rows = self._predict(pixels, input_ids, labels, state)
        wrong = logits[:, : self.config.num_words].argmax(dim=1) != targets
        return torch.bincount(rows[wrong], minlength=len(input_ids)) == 0

    def _predict(
        self, pixels: Tensor, input_ids: Tensor, labels: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return, for all K labelled positions, (K, V) logits, (K,) labels and (K,) rows of the batch."""
        embeds = self.embed(pixels, input_ids, state)
        hidden = self.language_model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        inserted = embeds.shape[1] - input_ids.shape[1]
        rows, columns = torch.nonzero(labels[:, 1:] != IGNORE, as_tuple=True)
        # Label `columns + 1` of the text is predicted one position earlier, after the inserted tokens.
        logits = self.language_model.lm_head(hidden[rows, columns + inserted]).float()
        return logits, labels[rows, columns + 1], rows

    def _score(self, logits: Tensor, targets: Tensor, smoothing: float) -> TrainingOutput:
        end, bins = self.config.action_vocab_end, self.config.n_action_bins
        is_action = (targets >= end - bins) & (targets < end)
        if smoothing > 0:
            loss = cross_entropy(logits, _smooth(targets, is_action, logits.shape[1], end - bins, end, smoothing))
        else:
            loss = cross_entropy(logits, targets)
        with torch.no_grad():
            predicted, wanted = logits[is_action].argmax(dim=1), targets[is_action]
            accuracy = (predicted == wanted).float().mean()
            l1 = (_centre(predicted, end, bins) - _centre(wanted, end, bins)).abs().mean()
        return TrainingOutput(loss, accuracy, l1)


def _centre(ids: Tensor, vocab_end: int, bins: int) -> Tensor:
    """Return the bin centre of each id; as in the reference, any other id counts as the nearest extreme."""
    index = (vocab_end - ids - 1).clamp(0, bins - 2)
    return (2 * index + 1) / (bins - 1) - 1.0


def _smooth(targets: Tensor, is_action: Tensor, vocab: int, first: int, end: int, sigma: float) -> Tensor:
    """Return (K, V) target probabilities: one-hot, but Gaussian over neighbouring bins for action labels."""
    ids = torch.arange(vocab, device=targets.device)
    distance = (ids[None] - targets[:, None]).float()
    weight = torch.exp(-0.5 * (distance / sigma) ** 2) * ((ids >= first) & (ids < end))
    one_hot = (distance == 0).float()
    soft = torch.where(is_action[:, None], weight, one_hot)
    return soft / soft.sum(dim=1, keepdim=True)
