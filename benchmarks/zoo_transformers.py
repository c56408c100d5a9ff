"""Small members of the transformers library's families, on which `coverage.py` tries the rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from models import NO_MARKS, Case
from torch import Tensor, nn

BATCH, LENGTH = 4, 24

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 200,
}
GROUPED = {**COMMON, **NO_MARKS, "num_key_value_heads": 2, "head_dim": 16}
PICTURE = {**COMMON, "image_size": 32, "patch_size": 8, "num_channels": 3}
PICTURE.pop("vocab_size")
SEQ2SEQ = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "vocab_size": 200,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
SPEECH = {
    **COMMON,
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_feat_extract_layers": 3,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}

HUGGING: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    # name: (configuration, model, input, options)
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        "causal",
        {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 200, **NO_MARKS},
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        "causal",
        {**COMMON, **NO_MARKS, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
    "gptj": (
        "GPTJConfig",
        "GPTJForCausalLM",
        "causal",
        {"n_layer": 2, "n_embd": 64, "n_head": 4, "rotary_dim": 8, "vocab_size": 200, **NO_MARKS},
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", "causal", {**COMMON, **NO_MARKS}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", "causal", GROUPED),
    "mistral": ("MistralConfig", "MistralForCausalLM", "causal", {**GROUPED, "sliding_window": 16}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", "causal", GROUPED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", "causal", GROUPED),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", "causal", {**GROUPED, "pad_token_id": 0}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", "causal", {**GROUPED, "pad_token_id": 0}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", "causal", {**GROUPED, "pad_token_id": 0}),
    "phi": ("PhiConfig", "PhiForCausalLM", "causal", {**COMMON, **NO_MARKS}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", "causal", {**GROUPED, "pad_token_id": 0}),
    "falcon": ("FalconConfig", "FalconForCausalLM", "causal", {**COMMON, **NO_MARKS}),
    "falcon alibi": ("FalconConfig", "FalconForCausalLM", "causal", {**COMMON, **NO_MARKS, "alibi": True}),
    "bloom": (
        "BloomConfig",
        "BloomForCausalLM",
        "causal",
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200, **NO_MARKS},
    ),
    "mpt": (
        "MptConfig",
        "MptForCausalLM",
        "causal",
        {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "vocab_size": 200, **NO_MARKS},
    ),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        "causal",
        {
            **COMMON,
            "ffn_dim": 128,
            "word_embed_proj_dim": 64,
            "max_position_embeddings": 64,
            "pad_token_id": 1,
            "bos_token_id": None,
            "eos_token_id": None,
        },
    ),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", "causal", {**COMMON, **NO_MARKS}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", "causal", {**COMMON, **NO_MARKS}),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", "causal", {**GROUPED}),
    "cohere": ("CohereConfig", "CohereForCausalLM", "causal", {**GROUPED, "pad_token_id": 0}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", "causal", {**COMMON, **NO_MARKS}),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", "causal", {**GROUPED}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", "causal", {**GROUPED, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        "causal",
        {
            **GROUPED,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "deepseek_v2": (
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        "causal",
        {
            **COMMON,
            **NO_MARKS,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        "causal",
        {
            **COMMON,
            **NO_MARKS,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "bert": ("BertConfig", "BertForMaskedLM", "masked", COMMON),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", "masked", {**COMMON, "max_position_embeddings": 64}),
    "deberta_v2": (
        "DebertaV2Config",
        "DebertaV2ForMaskedLM",
        "masked",
        {**COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 64},
    ),
    "deberta": (
        "DebertaConfig",
        "DebertaForMaskedLM",
        "masked",
        {**COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 64},
    ),
    "electra": ("ElectraConfig", "ElectraForMaskedLM", "masked", {**COMMON, "embedding_size": 32}),
    "albert": ("AlbertConfig", "AlbertForMaskedLM", "masked", {**COMMON, "embedding_size": 32}),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        "masked",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 200},
    ),
    "modernbert": (
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        "masked",
        {
            **COMMON,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "reference_compile": False,
        },
    ),
    "longformer": (
        "LongformerConfig",
        "LongformerForMaskedLM",
        "masked",
        {**COMMON, "attention_window": 8, "max_position_embeddings": 64},
    ),
    "mobilebert": (
        "MobileBertConfig",
        "MobileBertForMaskedLM",
        "masked",
        {**COMMON, "embedding_size": 32, "intra_bottleneck_size": 32},
    ),
    "funnel": (
        "FunnelConfig",
        "FunnelForMaskedLM",
        "masked",
        {"d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128, "block_sizes": [1, 1], "vocab_size": 200},
    ),
    "fnet": ("FNetConfig", "FNetForMaskedLM", "masked", {**COMMON, "tpu_short_seq_length": 32}),
    "xlnet": (
        "XLNetConfig",
        "XLNetLMHeadModel",
        "masked",
        {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128, "vocab_size": 200},
    ),
    "bigbird": (
        "BigBirdConfig",
        "BigBirdForMaskedLM",
        "masked",
        {**COMMON, "attention_type": "original_full", "max_position_embeddings": 64},
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        "seq2seq",
        {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 200,
            "decoder_start_token_id": 0,
        },
    ),
    "flan-t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        "seq2seq",
        {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 200,
            "decoder_start_token_id": 0,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
    "bart": ("BartConfig", "BartForConditionalGeneration", "seq2seq", SEQ2SEQ),
    "pegasus": ("PegasusConfig", "PegasusForConditionalGeneration", "seq2seq", SEQ2SEQ),
    "marian": ("MarianConfig", "MarianMTModel", "seq2seq", SEQ2SEQ),
    "mbart": ("MBartConfig", "MBartForConditionalGeneration", "seq2seq", SEQ2SEQ),
    "blenderbot": ("BlenderbotConfig", "BlenderbotForConditionalGeneration", "seq2seq", SEQ2SEQ),
    "vit": ("ViTConfig", "ViTForImageClassification", "picture", PICTURE),
    "deit": ("DeiTConfig", "DeiTForImageClassification", "picture", PICTURE),
    "beit": ("BeitConfig", "BeitForImageClassification", "picture", {**PICTURE, "use_relative_position_bias": True}),
    "swin": (
        "SwinConfig",
        "SwinForImageClassification",
        "picture",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "swinv2": (
        "Swinv2Config",
        "Swinv2ForImageClassification",
        "picture",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "convnext": (
        "ConvNextConfig",
        "ConvNextForImageClassification",
        "picture",
        {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]},
    ),
    "segformer": (
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        "picture",
        {
            "hidden_sizes": [16, 32, 32, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 32,
        },
    ),
    "dinov2": ("Dinov2Config", "Dinov2ForImageClassification", "picture", PICTURE),
    "regnet": (
        "RegNetConfig",
        "RegNetForImageClassification",
        "picture",
        {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "embedding_size": 16, "groups_width": 8},
    ),
    "poolformer": (
        "PoolFormerConfig",
        "PoolFormerForImageClassification",
        "picture",
        {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]},
    ),
    "clip": (
        "CLIPConfig",
        "CLIPModel",
        "clip",
        {
            "text_config": {**COMMON, "max_position_embeddings": 32, "eos_token_id": 2},
            "vision_config": PICTURE,
            "projection_dim": 32,
        },
    ),
    "siglip": (
        "SiglipConfig",
        "SiglipModel",
        "clip",
        {"text_config": {**COMMON, "max_position_embeddings": 32, "projection_size": 64}, "vision_config": PICTURE},
    ),
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2ForCTC", "speech", SPEECH),
    "hubert": ("HubertConfig", "HubertForCTC", "speech", SPEECH),
    "whisper": (
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        "whisper",
        {
            **SEQ2SEQ,
            "num_mel_bins": 16,
            "max_source_positions": 32,
            "max_target_positions": 32,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    ),
    "ast": ("ASTConfig", "ASTForAudioClassification", "spectrum", {**PICTURE, "max_length": 64, "num_mel_bins": 32}),
    "mamba": ("MambaConfig", "MambaForCausalLM", "causal", {**COMMON, **NO_MARKS, "state_size": 8}),
    "mamba2": (
        "Mamba2Config",
        "Mamba2ForCausalLM",
        "causal",
        {**COMMON, **NO_MARKS, "state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    ),
    "rwkv": ("RwkvConfig", "RwkvForCausalLM", "causal", {**COMMON, **NO_MARKS, "attention_hidden_size": 64}),
    "jamba": (
        "JambaConfig",
        "JambaForCausalLM",
        "causal",
        {
            **GROUPED,
            "pad_token_id": 0,
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        "RecurrentGemmaForCausalLM",
        "causal",
        {
            **GROUPED,
            "pad_token_id": 0,
            "block_types": ["recurrent", "attention"],
            "lru_width": 64,
            "attention_window_size": 16,
        },
    ),
}


def hugging_inputs(kind: str) -> dict[str, Tensor | bool]:
    """A batch for each kind of model."""
    ids = torch.randint(3, 200, (BATCH, LENGTH))
    mel = torch.randn(BATCH, 16, 64)
    return {
        "causal": lambda: {"input_ids": ids, "labels": ids, "use_cache": False},
        "masked": lambda: {"input_ids": ids, "labels": ids},
        "seq2seq": lambda: {"input_ids": ids, "labels": ids.roll(1, 1), "use_cache": False},
        "picture": lambda: {"pixel_values": torch.randn(BATCH, 3, 32, 32)},
        "clip": lambda: {"input_ids": ids, "pixel_values": torch.randn(BATCH, 3, 32, 32), "return_loss": True},
        "speech": lambda: {"input_values": torch.randn(BATCH, 1600)},
        "whisper": lambda: {"input_features": mel, "labels": ids, "use_cache": False},
        "spectrum": lambda: {"input_values": torch.randn(BATCH, 64, 32)},
    }[kind]()


def hugging_model(name: str) -> tuple[nn.Module, dict[str, Any]]:
    import transformers

    configuration, model, kind, options = HUGGING[name]
    config = getattr(transformers, configuration)(**options)
    return getattr(transformers, model)(config).train(), hugging_inputs(kind)


def hugging_cases() -> Iterator[Case]:
    for name in HUGGING:
        yield Case("transformers", name, lambda name=name: hugging_model(name))
