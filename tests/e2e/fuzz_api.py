"""schemathesis against /openapi.json of a scripted server: no answer of 500 and up.
Usage: fuzz_api.py NIBBLE MODEL [SECONDS]
"""
import os
import subprocess
import sys
import tempfile

from clients import SCRIPT, Server
import json


def main():
    nibble, model = sys.argv[1:3]
    seconds = int(sys.argv[3]) if len(sys.argv) > 3 else 60
    with tempfile.TemporaryDirectory() as work:
        script = os.path.join(work, "script.jsonl")
        with open(script, "w") as file:
            file.write("".join(json.dumps(line) + "\n" for line in SCRIPT))
        with Server(nibble, model, "--scripted", script, "--max-model-len", "4096") as server:
            command = [os.path.join(os.path.dirname(sys.executable), "schemathesis"), "run",
                       server.url + "/openapi.json", "--checks", "not_a_server_error",
                       "--max-time", str(seconds), "--seed", "20261125", "--no-color",
                       "--suppress-health-check", "all"]
            done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, timeout=seconds * 3 + 60)
            print(done.stdout[-4000:])
            assert server.process.poll() is None, "the server is gone"
            sys.exit(1 if done.returncode else 0)


if __name__ == "__main__":
    main()
