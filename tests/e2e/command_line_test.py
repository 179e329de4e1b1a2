#!/usr/bin/env python3
"""Completions, the manual page, and the files of deploy/. Usage: command_line_test.py NIBBLE."""
import json
import re
import shutil
import subprocess
import sys

from served import DEMO, ROOT, Served, run_all


def output(nibble, *arguments):
    return subprocess.run([nibble, *arguments], check=True, capture_output=True, text=True).stdout


def bash_completes_commands_flags_and_values(nibble):
    script = output(nibble, "completion", "bash")

    def complete(*words):
        quoted = " ".join(f"'{word}'" for word in words)
        done = subprocess.run(
            ["bash", "-c", f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _nibble;"
             'printf "%s\\n" "${COMPREPLY[@]}"'], check=True, capture_output=True, text=True)
        assert done.stderr == "", done.stderr
        return done.stdout.split()

    assert "serve" in complete("nibble", "se")
    assert complete("nibble", "serve", "--reasoning-f") == ["--reasoning-field"]
    assert "reasoning_content" in complete("nibble", "serve", "--reasoning-field", "")
    assert "--recipe" in complete("nibble", "quantize", "--re")


def every_flag_is_in_every_shell_and_in_the_manual(nibble):
    reference = output(nibble, "help", "--markdown")
    serve = reference.split("## nibble serve")[1].split("\n## ")[0]
    flags = re.findall(r"^\| `(?:-\w+, )?--([a-z0-9-]+)", serve, re.M)
    assert len(flags) > 20, flags
    manual = output(nibble, "help", "--man").replace("\\-", "-")
    for shell in ("bash", "zsh", "fish"):
        script = output(nibble, "completion", shell)
        for flag in flags:
            assert flag in script, (shell, flag)
        if shutil.which(shell):
            subprocess.run([shell, "-n"], input=script, text=True, check=True)
    for flag in flags:
        assert f".B --{flag}\n" in manual, flag


def the_manual_renders_without_warnings(nibble):
    if not shutil.which("groff"):
        print("      (no groff here: not rendered)")
        return
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww"], input=output(nibble, "help", "--man"),
                          text=True, check=True, capture_output=True)
    assert "NIBBLE(1)" in done.stdout
    assert done.stderr == "", done.stderr[:500]


def the_unit_verifies(nibble):
    if not shutil.which("systemd-analyze"):
        print("      (no systemd-analyze here: not verified)")
        return
    done = subprocess.run(["systemd-analyze", "verify", str(ROOT / "deploy/nibble.service")],
                          capture_output=True, text=True, check=False)
    # The program is not installed where tests run; everything else must be in order.
    found = [line for line in done.stderr.splitlines()
             if "nibble.service" in line and "is not executable" not in line
             and "nibble(1)" not in line]
    assert not found, found


def the_dashboard_asks_for_metrics_that_vllm_and_we_name(nibble):
    text = (ROOT / "deploy/grafana-dashboard.json").read_text(encoding="utf-8")
    dashboard = json.loads(text)
    assert len(dashboard["panels"]) >= 8
    for panel in dashboard["panels"]:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            for name in re.findall(r"\b(\w+:\w+)", target["expr"]):
                assert name.startswith("vllm:"), name


def the_examples_of_deploy_use_flags_that_exist(nibble):
    help_text = output(nibble, "serve", "--help")
    for name in ("nibble.service", "Dockerfile", "compose.yaml"):
        text = (ROOT / "deploy" / name).read_text(encoding="utf-8")
        commands = [line for line in text.splitlines() if "serve" in line and "--" in line
                    and not line.startswith("#")]
        for flag in re.findall(r"--[a-z][a-z-]+", " ".join(commands)):
            assert flag in help_text, (name, flag)


def flags_without_effect_say_so_once(nibble):
    ignored = ["--seed", "7", "--speculative-config", '{"method": "mtp"}', "--attention-backend",
               "FLASH_ATTN", "--disable-log-stats", "--trust-remote-code"]
    with Served(nibble, *ignored) as server:
        lines = [line for line in server.output().splitlines() if "without effect" in line]
        assert len(lines) == 1, lines
        for flag in ignored:
            if flag.startswith("--"):
                assert flag[2:] in lines[0], (flag, lines)
    with Served(nibble) as server:
        assert "without effect" not in server.output()


def the_quantization_named_must_be_the_checkpoints(nibble):
    done = subprocess.run([nibble, "serve", str(DEMO), "--port", "0", "--quantization",
                           "compressed-tensors"], capture_output=True, text=True, check=False,
                          timeout=60)
    assert done.returncode == 2, done
    assert "is not quantized" in done.stderr.splitlines()[-1], done.stderr
    done = subprocess.run([nibble, "serve", str(DEMO), "--quantization", "awq"],
                          capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "compressed-tensors" in done.stderr, done


if __name__ == "__main__":
    sys.exit(run_all([bash_completes_commands_flags_and_values,
                      every_flag_is_in_every_shell_and_in_the_manual,
                      the_manual_renders_without_warnings, the_unit_verifies,
                      the_dashboard_asks_for_metrics_that_vllm_and_we_name,
                      the_examples_of_deploy_use_flags_that_exist,
                      flags_without_effect_say_so_once,
                      the_quantization_named_must_be_the_checkpoints], sys.argv[1]))
