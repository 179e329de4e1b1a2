#!/usr/bin/env python3
"""The server under load. Loopback only, bounded.

Usage: serve_load.py NIBBLE [--seconds 60] [--clients 200] [--idle 5000] [--readers 50]

Prints one table: streaming clients (errors, memory after the first quarter against the end), idle
connections (memory), readers that stop reading (memory, the pace of others). Exit code 1 when a
bound is broken: an error, more than 8 MiB of growth, 200 MiB for the idle connections.
"""
import argparse
import json
import pathlib
import resource
import socket
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


def streaming_clients(nibble, clients, seconds):
    # Few KV blocks, so that all of them are in use, and their pages resident, before the first reading.
    with Served(nibble, "--max-model-len", "1024", "--max-num-seqs", "64", "--max-queue",
                str(clients * 2), "--num-gpu-blocks-override", "512") as server:
        readings, over = [], threading.Event()

        def watch():
            while not over.wait(0.5):
                readings.append(server.rss())

        watcher = threading.Thread(target=watch)
        watcher.start()
        report, complaint = bench(nibble, server, "--max-concurrency", str(clients), "--duration",
                                  str(seconds), "--random-input-len", "16", "--random-output-len",
                                  "16", "--ignore-eos")
        over.set()
        watcher.join()
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
        row("  threads of the server", len(list(pathlib.Path(
            f"/proc/{server.process.pid}/task").iterdir())))


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


def stopped_readers(nibble, count):
    with Served(nibble, "--max-model-len", "4096", "--max-num-seqs", str(count + 8),
                "--write-timeout", "5") as server:
        flags = ("--num-prompts", "16", "--max-concurrency", "1", "--random-input-len", "8",
                 "--random-output-len", "32", "--ignore-eos")
        alone, _ = bench(nibble, server, *flags)
        before = server.rss()
        body = json.dumps(chat_body("go on", stream=True, max_tokens=3800, ignore_eos=True))
        request = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: "
                   f"application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}").encode()
        readers = []
        for _ in range(count):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.sendall(request)
            readers.append(client)
        time.sleep(1)
        beside, _ = bench(nibble, server, *flags)
        grown = server.rss() - before
        row(f"{count} readers that do not read: extra resident", f"{grown / MIB:.1f} MiB",
            f"< {count} MiB", grown < count * MIB)
        row("  between tokens of another, alone / beside them (p50)",
            f"{alone['median_itl_ms']:.1f} / {beside['median_itl_ms']:.1f} ms")
        end = time.monotonic() + 300
        while server.metric("vllm:num_requests_running") and time.monotonic() < end:
            time.sleep(0.2)
        left = server.metric("vllm:num_requests_running")
        row("  still running once dropped", f"{left:.0f}", "0", left == 0)
        for client in readers:
            client.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nibble")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--idle", type=int, default=5000)
    parser.add_argument("--readers", type=int, default=50)
    flags = parser.parse_args()
    streaming_clients(flags.nibble, flags.clients, flags.seconds)
    if flags.idle:
        idle_connections(flags.nibble, flags.idle)
    if flags.readers:
        stopped_readers(flags.nibble, flags.readers)
    if broken:
        print("broken: " + "; ".join(broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
