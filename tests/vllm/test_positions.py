"""Positions in both of vLLM's runners, over every cut of a prompt. No CPU runs V2: its own code is called."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.multimodal.inputs import (
    MultiModalFeatureSpec,
    MultiModalFieldConfig,
    MultiModalKwargsItem,
    PlaceholderRange,
)
from vllm.v1.worker.gpu.model_states.mm_pruning import MultiModalPruner

from mi_pruner.integrations.vllm import models
from mi_pruner.integrations.vllm.options import Options
from mi_pruner.integrations.vllm.positions import COLUMNS
from mi_pruner.integrations.vllm.processor import COUNTS

IMAGE, VIDEO, WIDTH = 7, 8, 16
GRIDS = [(1, 8, 6), (1, 6, 10), (1, 4, 4), (1, 4, 8)]  # patches: 12, 15, 4 and 8 tokens
KEPT = [5, 4, 1, 8]
PROMPTS = {  # of text, images 0 to 3 and a video V
    "text between": [*[10] * 30, 0, 11, 12, 1, *[12] * 3],
    "no text between": [10, 0, 1, 2, 11, 11],
    "no text before": [0, 10, 1, 11],
    "no text but the last": [2, 10],
    "an image last, of which nothing is dropped": [10, 0, 11, 3],
    "placeholders that are text": [10, 0, 11, 1, IMAGE, 12, IMAGE],
    "a video": [10, 0, 11, "V", 12, 1, 11],
    "a video last": [10, 0, 11, "V"],
}


class Prompt:
    """A prompt with pruned images, and where its tokens belong."""

    def __init__(self, parts: list, linear: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = _model(linear)
        self.ids: list[int] = []
        self.features: list[MultiModalFeatureSpec] = []
        self.items: list[torch.Tensor] = []
        truth, at = [], 0
        for part in parts:
            if part in range(len(GRIDS)):
                _, height, width = (GRIDS[part][0], GRIDS[part][1] // 2, GRIDS[part][2] // 2)
                rows = torch.randperm(height * width, generator=generator)[: KEPT[part]].sort().values
                self._add("image", IMAGE, GRIDS[part], len(rows), height * width)
                offsets = [rows] * 3 if linear else [torch.zeros_like(rows), rows // width, rows % width]
                truth.append(torch.stack(offsets) + at)
                grid = None if linear else GRIDS[part]
                made = torch.randn(len(rows), WIDTH, generator=generator, dtype=torch.bfloat16)
                self.items.append(self.model._placed(made, rows, height * width, grid))
                at += height * width if linear else max(height, width)
            elif part == "V":
                self._add("video", VIDEO, (2, 4, 4), 8, 8)
                frame = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]])
                later = frame + torch.tensor([[1], [0], [0]])
                truth.append(torch.cat([frame, later], 1) + at)
                self.items.append(torch.zeros(8, WIDTH + COLUMNS, dtype=torch.bfloat16))
                at += 2
            else:
                self.ids.append(part)
                truth.append(torch.full((3, 1), at))
                at += 1
        self.truth, self.larger = torch.cat(truth, 1), at - len(self.ids)

    def _add(self, modality: str, token: int, grid: tuple[int, int, int], kept: int, tokens: int) -> None:
        fields = {f"{modality}_grid_thw": torch.tensor(grid), COUNTS: torch.tensor([tokens, kept])}
        if modality == "video":
            del fields[COUNTS]
        data = {
            name: MultiModalFieldConfig.batched(modality).build_elems(name, value[None])[0]
            for name, value in fields.items()
        }
        place = PlaceholderRange(offset=len(self.ids), length=kept)
        self.features.append(MultiModalFeatureSpec(MultiModalKwargsItem(data), modality, str(len(self.ids)), place))
        self.ids += [token] * kept

    def window(self, low: int, high: int) -> list[torch.Tensor]:
        """The rows of items that a step from `low` to `high` reads."""
        found = []
        for feature, item in zip(self.features, self.items, strict=True):
            start, length = feature.mm_position.offset, feature.mm_position.length
            first, last = max(low - start, 0), min(high - start, length)
            if first < last:
                found.append(item[first:last])
        return found

    def right(self, positions: torch.Tensor) -> bool:
        """Row 1 alone is read of 1-D positions; row 0 of an image has its start."""
        rows = slice(1, 2) if not self.model.architecture.mrope else slice(0, 3)
        return torch.equal(positions[rows].long(), self.truth[rows])


def _model(linear: bool):
    cls = models.LlavaForConditionalGeneration if linear else models.Qwen2_5_VLForConditionalGeneration

    class Fake(cls):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=1)
            self.config = SimpleNamespace(
                image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=5, vision_config=vision
            )
            self._pruned_by = Options(0.25)

    return Fake()


def _prompts():
    for name, parts in PROMPTS.items():
        for linear in (False, True):
            if not (linear and "V" in parts):
                yield pytest.param(parts, linear, id=f"{name}-{'1-D' if linear else 'mRoPE'}")


@pytest.mark.parametrize(("parts", "linear"), list(_prompts()))
class TestPositions:
    def test_in_the_v1_runner(self, parts, linear):
        prompt = Prompt(parts, linear)
        started, larger = prompt.model.get_mrope_input_positions(prompt.ids, prompt.features)
        assert larger == prompt.larger
        for cut in range(1, len(prompt.ids) + 1):
            positions = started.clone()
            end = len(prompt.ids)
            for low, high in ((0, cut), (cut, end), (end, end + 1)):  # called in steps without images, too
                cleaned, positions, larger = prompt.model.recompute_mrope_positions(
                    prompt.ids, prompt.window(low, high), positions, low
                )
                assert all(item.shape[1] == WIDTH for item in cleaned)
                assert larger == prompt.larger or high < end
            assert prompt.right(positions)
            again, same, _ = prompt.model.recompute_mrope_positions(  # after a preemption
                prompt.ids, prompt.window(0, len(prompt.ids)), positions, 0
            )
            assert torch.equal(same, positions)
            assert len(again) == len(prompt.items)

    def test_in_the_v2_runner(self, parts, linear):
        prompt = Prompt(parts, linear)
        ids = SimpleNamespace(all_token_ids=SimpleNamespace(gpu=torch.tensor([prompt.ids]).int()))
        started, _ = prompt.model.get_mrope_input_positions(prompt.ids, prompt.features)
        for cut in range(1, len(prompt.ids) + 1):
            state = _RopeState(started)
            pruner = MultiModalPruner(prompt.model, state, SimpleNamespace(mm_features={"r": prompt.features}), WIDTH)
            for low, high in ((0, cut), (cut, len(prompt.ids))):
                if not (items := prompt.window(low, high)):
                    continue
                batch = SimpleNamespace(
                    idx_mapping_np=np.array([0]),
                    prefill_len_np=np.array([len(prompt.ids)]),
                    num_computed_prefill_tokens_np=np.array([low]),
                    num_scheduled_tokens=np.array([high - low]),
                    req_ids=["r"],
                )
                assert all(item.shape[1] == WIDTH for item in pruner.recompute(items, batch, ids))
                assert all(item.shape[1] == WIDTH for item in pruner.strip(items))
            assert prompt.right(state.positions)
            assert state.larger == prompt.larger


class _RopeState:
    """vLLM's, without Triton."""

    def __init__(self, positions: torch.Tensor) -> None:
        self.positions, self.larger = positions.int(), None

    def read_prefill_positions(self, request: int, length: int) -> torch.Tensor:
        return self.positions[:, :length]

    def update_prefill_positions(self, request: int, positions: torch.Tensor, larger: int) -> None:
        self.positions[:, : positions.shape[1]] = positions.int()
        self.larger = larger
