#!/usr/bin/env python3
"""What llm-compressor's AWQ decides for given token ids: the golden of tests/quant/awq_golden_test.cc.

    python3 tools/make_awq_goldens.py models/nibble-demo-14m recipes/w4a16-awq.yaml \
        --calibration ids.json --dtype float32 --scales tests/golden/awq/scales.safetensors

The calibration file is a list of lists of token ids, or of Hermes conversations, which are rendered
with the model's chat template (the first --num-samples, cut at --max-seq-length tokens) as nibble
renders them; the last line printed is the hash that quantization_report.json has as
calibration_sha256. With --save DIR the quantized checkpoint is written too, for `nibble fidelity`.
Needs tools/requirements-oracles.txt.
"""

import argparse
import hashlib
import json
import struct
import tempfile

import torch
import yaml
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


# Quantization arguments inside an AWQModifier are the older spelling, which releases from 0.11 on
# refuse; they belong to a QuantizationModifier that follows.
AWQ_ARGUMENTS = {"mappings", "duo_scaling", "n_grid"}


def modifiers(path):
    with open(path) as file:
        arguments = yaml.safe_load(file)["default_stage"]["default_modifiers"]["AWQModifier"]
    awq = {key: value for key, value in arguments.items() if key in AWQ_ARGUMENTS}
    rest = {key: value for key, value in arguments.items() if key not in AWQ_ARGUMENTS}
    return [AWQModifier(**awq), QuantizationModifier(**rest)]


# The system turn of this layout spells its tools out; they are not handed to the template again.
def render(record, tokenizer, max_seq_length):
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles.get(turn["from"], turn["from"]), "content": turn["value"]}
                for turn in record["conversations"]]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"][:max_seq_length]


def hash_of(samples):
    digest = hashlib.sha256()
    for ids in samples:
        digest.update(struct.pack(f"<{len(ids)}i", *ids) + b"\n")
    return digest.hexdigest()


def save_layer(arguments, found, model):
    prefix = f"model.layers.{arguments.layer}."
    tensors = {name + ".scales": scales.to(torch.float64).contiguous()
               for name, (scales, _) in found.items() if name.startswith(prefix)}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_compressed=True)
        with safe_open(f"{folder}/model.safetensors", "pt") as file:
            for name in file.keys():
                if name.startswith(prefix):
                    tensors[name] = file.get_tensor(name).contiguous()
    save_file(tensors, arguments.scales)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("recipe")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--max-seq-length", type=int, default=2048)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--scales")
    parser.add_argument("--save")
    parser.add_argument("--layer", type=int,
                        help="write this layer's scales (float64) and quantized tensors to --scales")
    arguments = parser.parse_args()

    found = {}
    search = AWQModifier._compute_best_scale

    def recording_search(self, mapping, *rest):
        scales = search(self, mapping, *rest)
        found[mapping.smooth_name] = (scales.clone(), self._error_metrics[-1])
        return scales

    AWQModifier._compute_best_scale = recording_search

    if not torch.cuda.is_available():  # it pins whether or not there is a GPU
        torch.Tensor.pin_memory = lambda self, device=None: self

    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=getattr(torch, arguments.dtype))
    with open(arguments.calibration) as file:
        samples = json.load(file)[:arguments.num_samples]
    if isinstance(samples[0], dict):
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        samples = [render(record, tokenizer, arguments.max_seq_length) for record in samples]
    data = Dataset.from_dict({"input_ids": samples,
                              "attention_mask": [[1] * len(ids) for ids in samples]})
    oneshot(model=model, dataset=data, recipe=modifiers(arguments.recipe),
            num_calibration_samples=len(samples), max_seq_length=max(map(len, samples)),
            shuffle_calibration_samples=False)

    for name, (scales, metrics) in found.items():
        print(f"{name}: initial {metrics['initial_error']:.4e} best {metrics['best_error']:.4e}")
    if arguments.scales and arguments.layer is None:
        tensors = {name: scales.to(torch.float32).contiguous()
                   for name, (scales, _) in found.items()}
        longest = max(map(len, samples))
        tensors["input_ids"] = torch.tensor(
            [ids + [-1] * (longest - len(ids)) for ids in samples], dtype=torch.int32)
        tensors["losses"] = torch.tensor(
            [[metrics["initial_error"], metrics["best_error"]] for _, metrics in found.values()])
        save_file(tensors, arguments.scales)
    if arguments.layer is not None:
        save_layer(arguments, found, model)
    if arguments.save:
        model.save_pretrained(arguments.save, save_compressed=True)
        AutoTokenizer.from_pretrained(arguments.model).save_pretrained(arguments.save)
    print(hash_of(samples))


if __name__ == "__main__":
    main()
