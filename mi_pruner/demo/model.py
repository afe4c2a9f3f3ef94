"""DigitVLM: a vision-language model of 0.7 M parameters, built like the large ones.

    pixels --- vision encoder --- projector --- visual tokens ---\
                                                                   decoder --- answer
    question ------------------ word embedding --- text tokens ---/

The decoder is causal, with rotary positions. It takes any subset of the visual tokens with their original positions,
so pruning means to pass fewer of them: nothing in the model changes.
"""

from typing import cast

import torch
from torch import Tensor, nn

from .scenes import GRID, PATCH
from .vocabulary import WORDS

WIDTH = 96
HEADS = 4
ENCODER_BLOCKS = 2
DECODER_BLOCKS = 3
TOKENS = GRID * GRID  # visual tokens of a picture, unless the model is made for larger ones: 81
_ROPE_BASE = 10000.0  # half of the frequencies hardly turn over the 90 positions: they can look for content


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary position embedding. x: (B, H, L, d), positions: (B, L) integer -> (B, H, L, d)."""
    half = x.shape[-1] // 2
    frequency = _ROPE_BASE ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = positions[:, None, :, None].float() * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Block(nn.Module):
    """A pre-norm transformer block over (B, L, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.attention_out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x: (B, L, WIDTH), positions: (B, L) integer or None, mask: (B, 1, L, L) bool, True = may be seen."""
        weights, value = self._attend(x, positions, mask)
        x = x + self.attention_out((weights @ value).transpose(1, 2).flatten(2))
        return x + self.mlp(x)

    def attention(self, x: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """What `forward` of the same arguments attends to: (B, HEADS, L, L), rows sum to 1."""
        return self._attend(x, positions, mask)[0]

    def _attend(self, x: Tensor, positions: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attention weights (B, HEADS, L, L), values (B, HEADS, L, WIDTH / HEADS)."""
        batch, length, _ = x.shape
        fused = self.query_key_value(self.attention_norm(x))
        query, key, value = fused.view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        if positions is not None:
            query, key = rotate(query, positions), rotate(key, positions)
        # Written out: for heads this narrow the fused CPU kernel takes five times as long to go backwards.
        scores = (query * (WIDTH // HEADS) ** -0.5) @ key.transpose(2, 3)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(dim=-1), value


class VisionEncoder(nn.Module):
    """(B, 3, 6 G, 6 G) in 0 .. 1 -> (B, G * G, WIDTH): a convolutional stem and blocks that see the whole picture."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=2, padding=1),  # 3 G x 3 G
            nn.GELU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(64, WIDTH, PATCH // 2, stride=PATCH // 2),  # G x G
        )
        self.position = nn.Parameter(0.02 * torch.randn(grid * grid, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(ENCODER_BLOCKS))

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        return self.blocks[-1](self._before_last(pixels))

    def attention(self, pixels: Tensor) -> Tensor:
        """What each patch gets of the last block's attention, the mean over heads and patches: (B, G * G), sum 1."""
        last = cast(Block, self.blocks[-1])
        return last.attention(self._before_last(pixels)).mean(dim=(1, 2))

    def _before_last(self, pixels: Tensor) -> Tensor:
        x = self.stem(2 * pixels - 1).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks[:-1]:
            x = block(x)
        return x


class DigitVLM(nn.Module):
    """The whole model; see the module's docstring for its shape. grid: patches a side, G; `tokens` is G * G, 81."""

    def __init__(self, grid: int = GRID) -> None:
        super().__init__()
        self.tokens = grid * grid
        self.encoder = VisionEncoder(grid)
        self.projector = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )
        self.words = nn.Embedding(len(WORDS), WIDTH)
        nn.init.normal_(self.words.weight, std=WIDTH**-0.5)
        self.decoder = nn.ModuleList(Block() for _ in range(DECODER_BLOCKS))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(WORDS)))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, 6 G, 6 G) in 0 .. 1 -> visual tokens (B, G * G, WIDTH), after the projector; token i is at place i."""
        return self.projector(self.encoder(pixels))

    def embed_text(self, ids: Tensor) -> Tensor:
        """(..., M) int64 word ids -> text tokens (..., M, WIDTH)."""
        return self.words(ids)

    def answer(
        self,
        visual: Tensor,
        positions: Tensor,
        text: Tensor,
        text_mask: Tensor | None = None,
        visual_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of the answer word.

        visual: (B, K, WIDTH), any K of the visual tokens; positions: (B, K) int64, their places in the picture;
        text: (B, M, WIDTH); text_mask: (B, M) bool, True = a real token, padding on the right;
        visual_mask: (B, K) bool, True = a real token. Returns (B, len(WORDS)), read at the last real text token.
        """
        mask = None if text_mask is None else text_mask[:, None]
        return self.answer_many(visual, positions, text[:, None], mask, visual_mask)[:, 0]

    def answer_many(
        self,
        visual: Tensor,
        positions: Tensor,
        text: Tensor,
        text_mask: Tensor | None = None,
        visual_mask: Tensor | None = None,
    ) -> Tensor:
        """Like `answer` for Q questions on one picture, read in one pass: they share the visual tokens only.

        text: (B, Q, M, WIDTH), text_mask: (B, Q, M) bool. Returns (B, Q, len(WORDS)).
        """
        batch, questions, length, _ = text.shape
        if text_mask is None:
            text_mask = text.new_ones((batch, questions, length), dtype=torch.bool)
        if visual_mask is None:
            visual_mask = torch.ones_like(positions, dtype=torch.bool)
        text_positions = self.tokens + torch.arange(length, device=positions.device).repeat(questions)
        position = torch.cat((positions, text_positions.expand(batch, -1)), dim=1)
        mask = _causal_mask(visual_mask, text_mask)
        x = torch.cat((visual, text.flatten(1, 2)), dim=1)
        for block in self.decoder:
            x = block(x, position, mask)
        last = text_mask.sum(dim=-1) - 1 + length * torch.arange(questions, device=x.device)
        at = (visual.shape[1] + last)[..., None].expand(-1, -1, WIDTH)
        return self.head(x.gather(1, at))


def _causal_mask(visual_mask: Tensor, text_mask: Tensor) -> Tensor:
    """(B, K) and (B, Q, M) bool -> (B, 1, L, L) with L = K + Q * M: what a token may attend to.

    Earlier real tokens of the picture and of its own question; itself always, so that no row is empty.
    """
    kept = visual_mask.shape[1]
    _, questions, length = text_mask.shape
    device = text_mask.device
    group = torch.arange(questions, device=device).repeat_interleave(length)
    group = torch.cat((torch.full((kept,), -1, device=device), group))  # -1: the picture, open to every question
    total = group.numel()
    causal = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    related = (group[:, None] == group) | (group == -1)
    real = torch.cat((visual_mask, text_mask.flatten(1)), dim=1)
    itself = torch.eye(total, dtype=torch.bool, device=device)
    return (((causal & related) & real[:, None, :]) | itself)[:, None]
