#!/usr/bin/env python3
"""Writes the config.json files that tests/engine/memory_plan_test.cc and tests/cli plan for: the
40B hybrid shape as a vision-language checkpoint whose ignore list names every module, and as a
text checkpoint whose ignore list is patterns. Usage: make_configs.py (writes beside itself)."""
import json
import pathlib

HERE = pathlib.Path(__file__).parent
LAYERS, INTERVAL = 96, 4
TYPES = ["full_attention" if (i + 1) % INTERVAL == 0 else "linear_attention" for i in range(LAYERS)]
TEXT = {
    "model_type": "qwen3_5_text", "dtype": "bfloat16", "attention_bias": False,
    "attn_output_gate": True, "hidden_act": "silu", "hidden_size": 5120,
    "intermediate_size": 17408, "num_hidden_layers": LAYERS, "layer_types": TYPES,
    "num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 256,
    "linear_num_key_heads": 16, "linear_num_value_heads": 48, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "rms_norm_eps": 1e-06,
    "max_position_embeddings": 262144, "vocab_size": 248320, "eos_token_id": 248046,
    "mamba_ssm_dtype": "float32",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
                        "mrope_interleaved": True, "mrope_section": [11, 11, 10]},
}


def quantization(ignore):
    weights = {"actorder": None, "block_structure": None, "dynamic": False, "group_size": 128,
               "num_bits": 4, "observer": "mse", "observer_kwargs": {}, "strategy": "group",
               "symmetric": False, "type": "int"}
    return {"config_groups": {"group_0": {"format": "pack-quantized", "input_activations": None,
                                          "output_activations": None, "targets": ["Linear"],
                                          "weights": weights}},
            "format": "pack-quantized", "ignore": ignore, "kv_cache_scheme": None,
            "quant_method": "compressed-tensors", "quantization_status": "compressed"}


def write(name, config):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


PROJECTIONS = ["out_proj", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"]
EXPLICIT = [f"model.language_model.layers.{i}.linear_attn.{p}"
            for i in range(LAYERS) if TYPES[i] == "linear_attention" for p in PROJECTIONS] + ["lm_head"]
write("hybrid-40b", {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
                     "text_config": TEXT, "tie_word_embeddings": False, "dtype": "bfloat16",
                     "quantization_config": quantization(EXPLICIT)})
write("hybrid-40b-patterns", {"architectures": ["Qwen3_5ForCausalLM"], "tie_word_embeddings": False,
                              **TEXT,
                              "quantization_config": quantization(["re:.*lm_head", "re:.*linear_attn.*"])})
