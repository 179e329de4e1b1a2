#!/usr/bin/env python3
"""The server under load. Loopback only, bounded.

Usage: serve_load.py NIBBLE [--seconds 60] [--clients 200] [--idle 5000] [--readers 50] [--mixed]

Prints one table: streaming clients (errors, memory after the first quarter against the end, its slope,
descriptors and KV cache at idle), idle connections (memory), readers that stop reading (memory, the
pace of others). --mixed adds bad requests, clients that leave and requests without a stream to the
first. Exit code 1 when a bound is broken: an error, more than 8 MiB of growth, over 300 s and more
a slope of 1 MiB in 10 minutes, 200 MiB for the idle connections, 1.5 times the time between tokens.
"""
import argparse
import json
import pathlib
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "e2e"))
from served import Served, chat_body  # noqa: E402

MIB = 1 << 20
broken = []


def row(what, value, bound="", ok=True):
    print(f"{what:<58} {value:>16}  {bound}", flush=True)
    if not ok:
        broken.append(what)


def bench(nibble, server, *flags):
    done = subprocess.run([nibble, "bench", "serve", "--base-url", server.url, "--json", *flags],
                          capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout), done.stderr


def odd_requests(server, over):
    """What a public server meets beside streams, a few times a second."""
    while not over.wait(0.1):
        for path, body in (("/v1/chat/completions", {"messages": 5}), ("/nothing", {}),
                           ("/v1/completions", {"prompt": [[]]}),
                           ("/tokenize", {"prompt": "some words " * 500})):
            server.request("POST", path, body)
        server.chat(max_tokens=2)
        for stream in (True, False):
            client = socket.create_connection(("127.0.0.1", server.port))
            client.sendall(post(chat_body("go on", stream=stream, max_tokens=500, ignore_eos=True)))
            over.wait(0.05)
            client.close()


def slope(readings, interval):
    """Least squares, bytes in 10 minutes."""
    times = [i * interval for i in range(len(readings))]
    mean_t, mean_r = statistics.fmean(times), statistics.fmean(readings)
    return 600 * (sum((t - mean_t) * (r - mean_r) for t, r in zip(times, readings))
                  / sum((t - mean_t) ** 2 for t in times))


def streaming_clients(nibble, clients, seconds, mixed):
    # Few KV blocks, so that all of them are in use, and their pages resident, before the first reading.
    with Served(nibble, "--max-model-len", "1024", "--max-num-seqs", "64", "--max-queue",
                str(clients * 2), "--num-gpu-blocks-override", "512", "--keep-alive-timeout",
                "2") as server:
        server.chat(max_tokens=2)
        time.sleep(0.5)
        idle_fds = server.num_fds()
        readings, over, interval = [], threading.Event(), 0.5

        def watch():
            while not over.wait(interval):
                readings.append(server.rss())

        threads = [threading.Thread(target=watch)]
        if mixed:
            threads.append(threading.Thread(target=odd_requests, args=(server, over)))
        for thread in threads:
            thread.start()
        report, complaint = bench(nibble, server, "--max-concurrency", str(clients), "--duration",
                                  str(seconds), "--random-input-len", "16", "--random-output-len",
                                  "16", "--ignore-eos")
        over.set()
        for thread in threads:
            thread.join()
        warm = readings[len(readings) // 4:]
        growth = max(warm[-5:]) - max(warm[:5])
        row(f"{clients} streaming clients for {seconds} s: answers", report["completed"])
        row("  errors", report["failed"], "0 " + complaint.strip(), report["failed"] == 0)
        row("  tokens a second", f"{report['output_throughput']:.0f}")
        row("  first token, median / p99",
            f"{report['median_ttft_ms']:.0f} / {report['p99_ttft_ms']:.0f} ms")
        row("  between tokens, median / p99",
            f"{report['median_itl_ms']:.0f} / {report['p99_itl_ms']:.0f} ms")
        row("  resident at the end", f"{readings[-1] / MIB:.1f} MiB")
        row("  growth after the first quarter", f"{growth / MIB:+.2f} MiB", "< 8 MiB",
            growth < 8 * MIB)
        rate = slope(readings[len(readings) // 2:], interval)
        long_enough = seconds >= 300
        row("  slope of the second half", f"{rate / MIB:+.2f} MiB/10 min",
            "< 1 MiB" if long_enough else "(judged from 300 s on)",
            rate < MIB or not long_enough)
        row("  threads of the server", len(list(pathlib.Path(
            f"/proc/{server.process.pid}/task").iterdir())))
        within(10, lambda: server.metric("vllm:num_requests_running") == 0)
        within(5, lambda: server.num_fds() <= idle_fds)
        fds = server.num_fds()
        row("  descriptors at idle, before / after", f"{idle_fds} / {fds}", "equal", fds <= idle_fds)
        usage = server.metric("vllm:kv_cache_usage_perc")
        row("  KV cache in use at idle", f"{usage:.0%}", "0", usage == 0)


def idle_connections(nibble, count):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count + 64 > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 512), hard))
    with Served(nibble, "--keep-alive-timeout", "120") as server:
        server.chat(max_tokens=4)
        before = server.rss()
        held = []
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", server.port))
            client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            held.append(client)
        for client in held:
            assert b"200 OK" in client.recv(4096)
        grown = server.rss() - before
        start = time.monotonic()
        assert server.chat(max_tokens=4)[0] == 200
        row(f"{count} idle connections: extra resident", f"{grown / MIB:.1f} MiB", "< 200 MiB",
            grown < 200 * MIB)
        row("  one request beside them", f"{(time.monotonic() - start) * 1000:.0f} ms")
        for client in held:
            client.close()


def post(body):
    text = json.dumps(body)
    return (f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(text)}\r\n\r\n{text}").encode()


def within(seconds, condition):
    """Whether the condition comes true in that time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


class Readers:
    """Streams of many bytes a token, read to the end or not at all."""

    def __init__(self, port, count, reading):
        request = post(chat_body("go on", stream=True, max_tokens=3800, ignore_eos=True,
                                 logprobs=True, top_logprobs=20))
        self.clients = []
        for _ in range(count):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(request)
            self.clients.append(client)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.read) if reading else None
        if self.thread:
            self.thread.start()

    def read(self):
        with selectors.DefaultSelector() as selector:
            for client in self.clients:
                selector.register(client, selectors.EVENT_READ)
            while not self.over.is_set():
                for key, _ in selector.select(0.1):
                    if not key.fileobj.recv(1 << 16):
                        selector.unregister(key.fileobj)

    def close(self):
        self.over.set()
        if self.thread:
            self.thread.join()
        for client in self.clients:
            client.close()


def stopped_readers(nibble, count):
    """Others must not notice whether the readers beside them read."""
    with Served(nibble, "--max-model-len", "4096", "--max-num-seqs", str(count + 8),
                "--write-timeout", "5") as server:
        def running():
            return server.metric("vllm:num_requests_running")

        def wait_for(number, seconds):
            return within(seconds, lambda: running() == number)

        def others():
            report, _ = bench(nibble, server, "--num-prompts", "4", "--max-concurrency", "1",
                              "--random-input-len", "8", "--random-output-len", "32",
                              "--ignore-eos")
            return report["median_itl_ms"]

        readers = Readers(server.port, count, reading=True)
        wait_for(count, 30)
        beside_reading = others()
        readers.close()
        wait_for(0, 30)
        before = server.rss()
        readers = Readers(server.port, count, reading=False)
        wait_for(count, 30)
        beside_stopped = others()
        row(f"{count} readers that do not read: extra resident",
            f"{(server.rss() - before) / MIB:.1f} MiB", f"< {count} MiB",
            server.rss() - before < count * MIB)
        row("  between tokens of others, beside readers / these (p50)",
            f"{beside_reading:.1f} / {beside_stopped:.1f} ms", "< 1.5 x",
            beside_stopped < 1.5 * beside_reading)
        start = time.monotonic()
        gone = wait_for(0, 120)
        row("  all dropped at the write timeout (5 s) after",
            f"{time.monotonic() - start:.0f} s", "all", gone)
        usage = server.metric("vllm:kv_cache_usage_perc")
        row("  KV cache in use then", f"{usage:.0%}", "0%", usage == 0)
        readers.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nibble")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--idle", type=int, default=5000)
    parser.add_argument("--readers", type=int, default=50)
    parser.add_argument("--mixed", action="store_true")
    flags = parser.parse_args()
    if flags.clients:
        streaming_clients(flags.nibble, flags.clients, flags.seconds, flags.mixed)
    if flags.idle:
        idle_connections(flags.nibble, flags.idle)
    if flags.readers:
        stopped_readers(flags.nibble, flags.readers)
    if broken:
        print("broken: " + "; ".join(broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
