#!/usr/bin/env python3
"""Do transformers and compressed-tensors read our checkpoints, and compute what we compute?

    python3 tools/cross_check.py build/release/nibble build/release/tests/print_logits

Quantizes the bundled model by several recipes, loads each result with transformers in float32 and
compares logits. Exits with 77 (skipped) when tools/requirements-oracles.txt is not installed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import torch
    import transformers
    import compressed_tensors  # noqa: F401  (transformers needs it to read the format)
except ImportError as error:
    print(f"skipped: {error}; pip install -r tools/requirements-oracles.txt", file=sys.stderr)
    sys.exit(77)

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "nibble-demo-14m"
PROMPTS = ROOT / "models" / "calibration" / "hermes-style.json"
IDS = [5 + 13 * i % 3900 for i in range(96)]
# Of the largest logit: transformers keeps the decompressed weights rounded to their 16-bit dtype, we
# multiply codes and scales in float32.
TOLERANCE = 1e-2
VARIANTS = {
    "rtn": ["--recipe", ROOT / "recipes/w4a16-rtn-mse.yaml"],
    "symmetric 8 bits by row": ["--algorithm", "rtn", "--num-bits", "8", "--group-size", "-1",
                                "--symmetric"],
    "awq": ["--recipe", ROOT / "recipes/w4a16-awq.yaml", "--calibration", PROMPTS,
            "--num-calibration-samples", "2", "--max-seq-length", "128"],
    "awq+gptq, two groups": ["--recipe", ROOT / "recipes/w4a16-awq-gptq-linear8.yaml",
                             "--calibration", PROMPTS, "--num-calibration-samples", "2",
                             "--max-seq-length", "128"],
}


def our_logits(model, print_logits, work):
    raw = work / "logits.bin"
    subprocess.run([print_logits, model, raw, *map(str, IDS)], check=True)
    return torch.frombuffer(bytearray(raw.read_bytes()), dtype=torch.float32).view(len(IDS), -1)


def check(name, flags, nibble, print_logits, work):
    out = work / name.replace(" ", "-")
    subprocess.run([nibble, "quantize", MODEL, out, *flags], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ours = our_logits(out, print_logits, work)
    parent = our_logits(MODEL, print_logits, work)
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor([IDS])).logits[0]
    largest = theirs.abs().max().item()
    worst = (ours - theirs).abs().max().item() / largest
    mean = (ours - theirs).abs().mean().item()
    moved = (ours - parent).abs().mean().item()  # what quantization itself does
    print(f"{name}: largest difference {worst:.2e} of the largest logit, mean difference "
          f"{mean:.2e}; quantization moved them by {moved:.2e}")
    return worst <= TOLERANCE and mean < moved / 4


def main():
    nibble, print_logits = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as work:
        good = [check(name, flags, nibble, print_logits, Path(work))
                for name, flags in VARIANTS.items()]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
