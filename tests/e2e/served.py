"""Starts `nibble serve` for tests that look at it from outside; standard library only."""
import http.client
import json
import pathlib
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "nibble-demo-14m"


class Served:
    """A server process; leaves nothing behind. `with Served(nibble, "--flag", ...) as s:`"""

    def __init__(self, nibble, *flags, env=None, model=DEMO, wait=True):
        self.log = tempfile.NamedTemporaryFile("w+", prefix="nibble-serve-", suffix=".log")
        self.process = subprocess.Popen(
            [nibble, "serve", str(model), "--served-model-name", "demo", "--port", "0", *flags],
            stderr=self.log, stdout=subprocess.DEVNULL, env=env)
        self.port = None
        self.url = ""
        if wait:
            self.wait_listening()

    def wait_listening(self, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for word in self.output().split():
                if word.startswith("url="):
                    self.url = word[4:]
                    if self.url.startswith("http"):
                        self.port = int(self.url.rsplit(":", 1)[1])
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError("the server did not come up:\n" + self.output())

    def output(self):
        return pathlib.Path(self.log.name).read_text(errors="replace")

    def request(self, method, path, body=None, headers=None, timeout=60):
        """(status, headers, text)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        payload = None if body is None else json.dumps(body)
        connection.request(method, path, payload,
                           {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        connection.close()
        return response.status, response.headers, text

    def chat(self, text="Hello", **fields):
        return self.request("POST", "/v1/chat/completions", chat_body(text, **fields))

    def rss(self):
        for line in open(f"/proc/{self.process.pid}/status", encoding="ascii"):
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def num_fds(self):
        return len(list(pathlib.Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def metric(self, name):
        for line in self.request("GET", "/metrics")[2].splitlines():
            if line.startswith(name + "{") or line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        return None

    def stop(self, sig=signal.SIGTERM, seconds=60):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(seconds)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


def chat_body(text="Hello", **fields):
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


def wait_until(what, condition, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"within {seconds} s: {what}")


def run_all(tests, *arguments):
    """Runs functions in order, prints a line each; the exit code."""
    failed = 0
    for test in tests:
        start = time.monotonic()
        try:
            test(*arguments)
            print(f"ok    {test.__name__} ({time.monotonic() - start:.1f} s)", flush=True)
        except Exception as error:  # every failure is reported, then the next test runs
            failed += 1
            print(f"FAIL  {test.__name__}: {type(error).__name__}: {error}", flush=True)
    return 1 if failed else 0
