#!/usr/bin/env python3
"""Keeps the house rules that a compiler does not see. Usage: tools/tidy.py [ROOT]

Checks under ROOT (default: this tree): who may include whom, which file may include which library,
CUDA headers outside src/device/cuda, headers without `#pragma once` (but for -inl.h, which Highway
includes once a target), .cc files without an opening comment, files over 750 lines, headers nobody
includes. Prints one line per finding; exit code 1 if there is one. tests/tidy/ holds a tree that
breaks every rule.
"""
import pathlib
import re
import sys

# Folders below each folder of src/; a folder may include itself and these.
BELOW = {
    "base": [],
    "tensor": ["base"], "text": ["base"], "net": ["base"], "image": ["base"],
    "device": ["tensor", "base"], "checkpoint": ["tensor", "base"],
    "model": ["device", "checkpoint", "tensor", "base"],
    "quant": ["model", "device", "checkpoint", "tensor", "text", "base"],
    "engine": ["model", "device", "checkpoint", "tensor", "base"],
    "eval": ["engine", "quant", "model", "checkpoint", "tensor", "text", "base"],
    "server": ["engine", "checkpoint", "tensor", "text", "net", "base"],
    "cli": ["server", "eval", "engine", "quant", "model", "checkpoint", "device", "tensor", "text",
            "net", "base"],
}
# A library and the only files that may include it (prefixes of the path below src/).
DOORKEEPERS = {
    r"nlohmann/": ["base/json."], r"spdlog/": ["base/log."], r"fmt/": ["base/format."],
    r"yaml-cpp/": ["base/yaml."], r"openssl/": ["base/hash.", "net/"],
    r"boost/": ["net/"], r"utf8proc": ["text/unicode."], r"re2/": ["base/pattern."],
    r"pcre2": ["text/regex."], r"hwy/": ["device/cpu/"], r"cuda": ["device/cuda/"],
    r"nccl": ["device/comm/"],
}
MAX_LINES = 750
INCLUDE = re.compile(r'^\s*#include\s+([<"])([^>"]+)[>"]', re.M)


def check(root):
    source = root / "src"
    findings = []
    included = set()
    files = sorted(p for p in source.rglob("*") if p.suffix in (".h", ".cc", ".cu", ".cuh"))
    for path in files:
        name = path.relative_to(source).as_posix()
        folder = name.split("/")[0]
        text = path.read_text(encoding="utf-8")

        def report(what):
            findings.append(f"src/{name}: {what}")

        if folder not in BELOW:
            report(f"folder {folder} is unknown; give it a floor in tools/tidy.py")
            continue
        once = "#pragma once" in text or path.name.endswith("-inl.h")
        if path.suffix in (".h", ".cuh") and not once:
            report("no #pragma once")
        if not text.startswith("//"):
            report("does not open with a comment that says what it is for")
        if text.count("\n") > MAX_LINES:
            report(f"{text.count(chr(10))} lines; past {MAX_LINES} there are two ideas inside")
        for bracket, target in INCLUDE.findall(text):
            if bracket == '"':
                if not (source / target).exists():
                    report(f'includes "{target}", which is not below src/')
                    continue
                included.add(target)
                other = target.split("/")[0]
                if other != folder and other not in BELOW[folder]:
                    report(f'includes "{target}": {folder} may not know {other}')
            else:
                for library, keepers in DOORKEEPERS.items():
                    if re.match(library, target) and not any(name.startswith(k) for k in keepers):
                        report(f"includes <{target}>; only {', '.join(keepers)} may")
    for path in files:
        name = path.relative_to(source).as_posix()
        if path.suffix in (".h", ".cuh") and name not in included:
            findings.append(f"src/{name}: no file of src/ includes it")
    return findings


def main():
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent
    findings = check(root.resolve())
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
