"""Options and models that are not served are refused when vLLM reads its configuration."""

from __future__ import annotations

import pytest
from vllm.engine.arg_utils import EngineArgs

from mi_pruner.integrations.vllm import register, startup

KEEP = {"mi_pruner": {"keep": 0.25}}
ENCODER_ELSEWHERE = {"ec_connector": "ECExampleConnector", "ec_role": "ec_consumer"}


def configure(folder, overrides=None, **options):
    """What an engine does first; no model is loaded."""
    return EngineArgs(
        model=str(folder),
        **{"hf_overrides": KEEP if overrides is None else overrides, "max_model_len": 512, "dtype": "float32"}
        | options,
    ).create_engine_config()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"keep": 1.5}, r"keep to be a ratio in \(0, 1\], got 1.5: a count does not fit images of several sizes"),
        ({"keep": 144}, r"ratio in \(0, 1\], got 144: a count"),
        ({"keep": 0}, r"ratio in \(0, 1\], got 0$"),
        ({"keep": -0.5}, "got -0.5$"),
        ({"keep": "0.25"}, "got '0.25'"),
        ({"keep": True}, "got True"),
        ({"keep": float("nan")}, "got nan"),
        ({"keep": None}, "got None"),
        ({}, 'got no "keep"'),
        ({"text": "question"}, 'got no "keep"'),
        ({"keep": 0.25, "text": "instruction"}, "text to be one of 'image', 'question', got 'instruction'"),
        ({"keep": 0.25, "kept": 3}, "expected keep and text, got 'kept'"),
        ({"keep": 0.25, "min_gain": 0.1}, "no min_gain, since an engine must know"),
    ],
)
def test_what_is_said(folders, said, message):
    with pytest.raises(ValueError, match="mi_pruner: ") as raised:
        configure(folders["llava"], {"mi_pruner": said})
    assert raised.match(message.replace("$", r"($|\s)"))


@pytest.mark.parametrize("said", [0.25, True, "0.25", [0.25]])
def test_an_object_is_expected(folders, said):
    with pytest.raises(ValueError, match="mi_pruner: expected an object, such as"):
        configure(folders["llava"], {"mi_pruner": said})


def test_all_is_a_ratio(folders):
    for keep in (1, 1.0):
        configure(folders["llava"], {"mi_pruner": {"keep": keep}})


def test_another_family(tmp_path):
    import transformers

    text = transformers.LlamaConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=99)
    text.architectures = ["LlamaForCausalLM"]
    text.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"mi_pruner: expected one of LlavaForConditionalGeneration, .*, got LlamaForC"
    ):
        configure(tmp_path, skip_tokenizer_init=True)
    configure(tmp_path, {}, skip_tokenizer_init=True)


def test_another_version_of_vllm(folders, monkeypatch):
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    monkeypatch.setattr(MODELS_CONFIG_MAP["LlavaForConditionalGeneration"], "served", False)
    with pytest.raises(ValueError, match=r"expected vLLM 0.32, which this version serves, got 0.32.*pip install"):
        configure(folders["llava"])
    configure(folders["llava"], {})


@pytest.mark.parametrize("version", ["dev", "0.0.0", "0.31.9", "1.32.0"])
def test_whatever_the_version_is_called(version, monkeypatch):
    """vLLM starts; nothing of it is replaced."""
    put = []
    monkeypatch.setattr("vllm.__version__", version)
    monkeypatch.setattr(startup, "check_configurations", lambda *given: put.append(given))
    monkeypatch.setattr("vllm.ModelRegistry.register_model", lambda *given: put.append(given))
    register()
    assert put == [(version, False)]


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("qwen2_5_vl", {"video_pruning_rate": 0.5}, "expected no video_pruning_rate beside it"),
        ("llava", {"enable_prompt_embeds": True}, "expected no enable_prompt_embeds"),
        ("llava", {"mm_processor_kwargs": {"mi_pruner": {"keep": 0.1}}}, "in --hf-overrides, got it in --mm-processor"),
        (
            "llava",
            {"mm_processor_kwargs": {"images_kwargs": {"mi_pruner": {}}}},
            "got it in --mm-processor-kwargs",
        ),
        ("llava", {"ec_transfer_config": ENCODER_ELSEWHERE}, "the vision encoder in the same instance"),
        ("llava", {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}, "pipeline_parallel_size 1"),
        ("llava", {"enable_lora": True, "enable_tower_connector_lora": True}, "no enable_tower_connector_lora"),
    ],
)
def test_what_does_not_go_together(folders, family, options, message):
    with pytest.raises(ValueError, match=f"mi_pruner: .*{message}"):
        configure(folders[family], **options)


def test_drafts(folders):
    draft = {"method": "draft_model", "model": str(folders["llava"]), "num_speculative_tokens": 2}
    with pytest.raises(ValueError, match=r"mi_pruner: expected a speculative method without .*, got 'draft_model'"):
        configure(folders["llava"], speculative_config=draft)
    configure(folders["llava"], {}, speculative_config=draft)
    configure(folders["llava"], speculative_config={"method": "ngram", "num_speculative_tokens": 2})


def test_another_vision_encoder(folders):
    with pytest.raises(ValueError, match="mi_pruner: expected a LLaVA with CLIP or SigLIP, got one with Pixtral's"):
        configure(folders["llava"], KEEP | {"vision_config": {"model_type": "pixtral"}})


def test_scaled_rope_of_one_dimension(folders):
    scaled = {"text_config": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}}
    with pytest.raises(ValueError, match=r"mi_pruner: expected rope_type 'default' .*, got 'linear'"):
        configure(folders["llava"], KEEP | scaled)


def test_no_rope(folders):
    """As of a language model with learned positions."""
    with pytest.raises(ValueError, match=r"mi_pruner: expected a language model with rotary positions, .*: llama"):
        configure(folders["llava"], KEEP | {"text_config": {"rope_parameters": None}})


def test_positions_of_one_dimension_keep_the_rope(folders):
    config = configure(folders["llava"]).model_config
    rope = config.hf_text_config.rope_parameters
    assert rope["mrope_section"] == [16, 0, 0]
    assert rope["rope_theta"] == 1e4
    assert config.uses_mrope
    assert not configure(folders["llava"], {}).model_config.uses_mrope
