"""Videos: left alone beside pruned images; without the option pruned by vLLM itself, if it is told so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import vllm
from vllm.model_executor.model_loader import utils
from vllm.model_executor.models.interfaces import supports_multimodal_pruning
from vllm.model_executor.models.registry import _LazyRegisteredModel

from mi_pruner.integrations.vllm.model import PrunedModel

from .engines import cases, check, generate, mark, model_of, picture, reference, request, runner_of, running

ABOUT_A_FILM = "<s>user: <|vision_start|><|video_pad|><|vision_end|>what is it? assistant: "


def film() -> tuple[np.ndarray, dict[str, Any]]:
    frames = np.stack([np.asarray(picture(seed, 84, 112)) for seed in range(4)])
    told = {"fps": 2.0, "duration": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    return frames, {**told, "video_backend": "opencv", "do_sample_frames": False}


def test_a_video_is_left_alone(folders):
    """A video beside a pruned image: all of its tokens, at its own positions."""
    family = "qwen2_5_vl"
    truth, clip, alone = reference(folders[family]), film(), ABOUT_A_FILM
    with running(folders[family], {}) as llm:
        plain = generate(llm, [{"prompt": alone, "multi_modal_data": {"video": clip}}])[0]
    beside = alone.replace("what", f"and {mark(family)}what")
    shown = picture(0, 112, 84)
    with running(folders[family]) as llm:
        same = generate(llm, [{"prompt": alone, "multi_modal_data": {"video": clip}}])[0]
        both = generate(llm, [{"prompt": beside, "multi_modal_data": {"video": clip, "image": shown}}])[0]
        again = generate(llm, [{"prompt": beside, "multi_modal_data": {"video": clip, "image": shown}}])[0]
    assert same.prompt_token_ids == plain.prompt_token_ids
    assert same.outputs[0].token_ids == plain.outputs[0].token_ids
    video = truth.model.config.video_token_id
    assert both.prompt_token_ids.count(video) == plain.prompt_token_ids.count(video)
    assert both.prompt_token_ids.count(truth.model.config.image_token_id) == 3  # of 12
    assert again.outputs[0].token_ids == both.outputs[0].token_ids


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_without_the_option_vllm_prunes_as_it_does(family, folders, monkeypatch):
    """--video-pruning-rate: the flag that vLLM's runner for CPUs lacks is set here, as that for GPUs does it."""
    asked: list[Any] = [request(case) for case in cases(family)]
    if family == "qwen2_5_vl":  # vLLM's Qwen3-VL fails with this one
        asked.append({"prompt": ABOUT_A_FILM, "multi_modal_data": {"video": film()}})
    told = []
    name = reference(folders[family]).model.config.architectures[0]
    for ours in (True, False):
        if not ours:
            own = _LazyRegisteredModel(f"vllm.model_executor.models.{family}", name)
            monkeypatch.setitem(vllm.ModelRegistry.models, name, own)
            monkeypatch.setattr(utils, "_MODEL_ARCH_BY_HASH", {})
        with running(folders[family], {}, video_pruning_rate=0.5) as llm:
            assert isinstance(model_of(llm), PrunedModel) == ours
            runner_of(llm).is_multimodal_pruning_enabled = True
            told.append([(each.prompt_token_ids, each.outputs[0]) for each in generate(llm, asked)])
    for (prompt, ours), (same, theirs) in zip(*told, strict=True):
        assert prompt == same
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs == theirs.logprobs


def test_without_the_option_a_rate_that_a_model_does_not_know(folders):
    """vLLM's Qwen2-VL takes --video-pruning-rate and prunes nothing."""
    asked, truth = cases("qwen2_vl"), reference(folders["qwen2_vl"])
    with running(folders["qwen2_vl"], {}, video_pruning_rate=0.5) as llm:
        assert not supports_multimodal_pruning(model_of(llm))
        assert not runner_of(llm).is_multimodal_pruning_enabled
        check(generate(llm, [request(case) for case in asked]), [truth(case, 1) for case in asked])
