#!/usr/bin/env python3
"""Copies the tiny-model fixtures into tests/golden/fixtures, keeping only the tensors tests read.

Usage: tools/prune_fixtures.py SOURCE_DIR
Dropped: bfloat16 logits (noise samples, not targets), prompts 63 and 64 (65 and 200 cover the
chunk border), values that only a GPU computes (@cuda). Standard library only.
"""
import json
import pathlib
import shutil
import struct
import sys

FOLDERS = ["llama-dense", "ops", "quant", "qwen3-dense", "qwen3_5-dense", "qwen3_5-dense-tied",
           "qwen3_5_moe", "sampling"]


def dropped(name: str) -> bool:
    return (name.endswith("_bf16") or name.endswith("@cuda")
            or name.startswith(("prompt63.", "prompt64.")))


def prune_safetensors(path: pathlib.Path) -> None:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    metadata = header.pop("__metadata__", None)
    kept, blobs, offset = {}, [], 0
    for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if dropped(name):
            continue
        begin, end = info["data_offsets"]
        blobs.append(raw[8 + length + begin:8 + length + end])
        kept[name] = dict(info, data_offsets=[offset, offset + end - begin])
        offset += end - begin
    if metadata is not None:
        kept["__metadata__"] = metadata
    text = json.dumps(kept, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def main() -> None:
    source = pathlib.Path(sys.argv[1])
    target = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/fixtures"
    for folder in FOLDERS:
        shutil.copytree(source / folder, target / folder, dirs_exist_ok=True,
                        copy_function=shutil.copyfile)
        prune_safetensors(target / folder / "goldens.safetensors")
        manifest_path = target / folder / "manifest.json"
        manifest = json.loads(manifest_path.read_text())
        manifest["tensors"] = {k: v for k, v in manifest["tensors"].items() if not dropped(k)}
        manifest.pop("tensors_on_disk", None)
        manifest_path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    shutil.copyfile(source / "README.md", target / "README.md")


if __name__ == "__main__":
    main()
