#!/usr/bin/env python3
"""How far a bf16 run of Hugging Face transformers is from its own float32 run, on the tiny models.

Usage: make_bf16_noise.py [FIXTURES_DIR] >tests/golden/fixtures/bf16_noise.json

For every prompt of every model the largest KL(float32 || bf16) of a position, in nats: the noise that
an implementation in bf16 is judged by. Needs tools/requirements-oracles.txt.
"""
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

PROMPTS = ("prompt1", "prompt5", "prompt65", "prompt200")


def logits_of(folder, dtype, prompts):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype,
                                                 attn_implementation="eager").eval()
    with torch.no_grad():
        return [model(ids).logits[0].double() for ids in prompts]


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else
                        pathlib.Path(__file__).resolve().parents[1] / "tests/golden/fixtures")
    noise = {}
    for config in sorted(root.glob("*/config.json")):
        folder = config.parent
        goldens = load_file(folder / "goldens.safetensors")
        prompts = [goldens[name + ".input_ids"].long().reshape(1, -1) for name in PROMPTS]
        exact = logits_of(folder, torch.float32, prompts)
        rounded = logits_of(folder, torch.bfloat16, prompts)
        noise[folder.name] = {}
        for name, p, q in zip(PROMPTS, exact, rounded):
            difference = (p - goldens[name + ".logits"].double().reshape(p.shape)).abs().max().item()
            if difference > 1e-3:
                raise SystemExit(f"{folder.name} {name}: float32 logits {difference} off the goldens")
            log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
            noise[folder.name][name] = (log_p.exp() * (log_p - log_q)).sum(-1).max().item()
    json.dump(noise, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
