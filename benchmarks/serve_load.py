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
        within(10, lambda: server.num_fds() <= idle_fds
               and server.metric("vllm:num_requests_running") == 0)
        row("  descriptors at idle, before / after", f"{idle_fds} / {server.num_fds()}", "equal",
            server.num_fds() <= idle_fds)
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


def long_streams(server, count, receive_buffer):
    """Streams of some 40 KB a token, so that those not read fill every buffer in about 20 tokens."""
    body = chat_body("go on", stream=True, max_tokens=4096, ignore_eos=True, logprobs=True,
                     top_logprobs=500)
    clients = []
    for _ in range(count):
        client = socket.socket()
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", server.port))
        client.sendall(post(body))
        clients.append(client)
    within(60, lambda: server.metric("vllm:num_requests_running") == count)
    return clients


def read_all(clients, over):
    with selectors.DefaultSelector() as ready:
        for client in clients:
            ready.register(client, selectors.EVENT_READ)
        while not over.is_set():
            for key, _ in ready.select(0.2):
                if not key.fileobj.recv(1 << 18):
                    ready.unregister(key.fileobj)


def times_between_tokens(server, count):
    """Milliseconds, sorted, of one stream that is read as it comes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(post(chat_body("go on", stream=True, max_tokens=count, ignore_eos=True)))
        arrivals, text = [], b""
        while b"[DONE]" not in text:
            text = text[-16:] + client.recv(65536)
            arrivals.append(time.monotonic())
    waits = sorted((b - a) * 1000 for a, b in zip(arrivals[1:], arrivals[2:]))
    return statistics.median(waits), waits[int(len(waits) * 0.9)]


def stopped_readers(nibble, count, write_timeout=10, num_tokens=40):
    with Served(nibble, "--max-model-len", "8192", "--max-num-seqs", str(count + 8),
                "--max-logprobs", "500", "--write-timeout", str(write_timeout)) as server:
        running = lambda: server.metric("vllm:num_requests_running")  # noqa: E731
        over = threading.Event()
        clients = long_streams(server, count, 0)
        reader = threading.Thread(target=read_all, args=(clients, over))
        reader.start()
        reading = times_between_tokens(server, num_tokens)
        over.set()
        reader.join()
        for client in clients:
            client.close()
        within(30, lambda: running() == 0)

        before, peak, over = server.rss(), [0], threading.Event()

        def watch():
            while not over.wait(0.1):
                peak[0] = max(peak[0], server.rss())

        watcher = threading.Thread(target=watch)
        watcher.start()
        clients = long_streams(server, count, 4096)
        start = time.monotonic()
        stopped = times_between_tokens(server, num_tokens)
        held = running()
        within(120, lambda: running() == 0)
        took = time.monotonic() - start
        over.set()
        watcher.join()
        row(f"between tokens beside {count} that read, median / p90",
            f"{reading[0]:.0f} / {reading[1]:.0f} ms")
        row(f"  beside {count} that stopped reading", f"{stopped[0]:.0f} / {stopped[1]:.0f} ms",
            "< 1.5 x", stopped[0] < 1.5 * reading[0])
        row("  of those still there after that", f"{held:.0f}")
        grown = max(0, peak[0] - before)
        row("  most extra resident", f"{grown / MIB:.1f} MiB", f"< {count} MiB",
            grown < count * MIB)
        row("  all dropped after", f"{took:.0f} s", f"--write-timeout {write_timeout}",
            running() == 0)
        usage = server.metric("vllm:kv_cache_usage_perc")
        row("  KV cache in use then", f"{usage:.0%}", "0", usage == 0)
        for client in clients:
            client.close()


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
