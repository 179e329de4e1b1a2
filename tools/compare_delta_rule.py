#!/usr/bin/env python3
"""Times flash-linear-attention's chunked gated delta rule (Triton) on the shapes of bench_cuda_gdn.

Needs a GPU, PyTorch and the PyPI package flash-linear-attention. One layer with 16 key and 48 value
heads of 128 in bf16, L2 norm inside the kernel. Prints the median of 20 runs, and the card's bf16
matrix rate for scale. Arguments: the shapes, as tokens of a sequence x sequences; all by default.
Kernels are compiled and tuned at each start, which takes a minute or two.
"""
import sys

import torch
from fla.ops.gated_delta_rule import chunk_gated_delta_rule


def median_ms(body, repeats=20):
    for _ in range(3):
        body()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        body()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


@torch.inference_mode()
def main():
    torch.manual_seed(0)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    ms = median_ms(lambda: a @ b)
    print(f"{torch.cuda.get_device_name()}: bf16 matrix product {2 * 8192**3 / ms * 1e-9:.0f} TFLOP/s")
    for name in sys.argv[1:] or ["32768x1", "8192x1", "8192x4", "2048x16"]:
        each, count = (int(part) for part in name.split("x"))
        counts = [each] * count
        tokens = sum(counts)
        starts = torch.tensor([0] + counts, device="cuda").cumsum(0)
        q, k = (torch.randn(1, tokens, 16, 128, device="cuda", dtype=torch.bfloat16)
                for _ in range(2))
        v = torch.randn(1, tokens, 48, 128, device="cuda", dtype=torch.bfloat16)
        g = -0.2 * torch.rand(1, tokens, 48, device="cuda")
        beta = torch.rand(1, tokens, 48, device="cuda")
        state = torch.zeros(len(counts), 48, 128, 128, device="cuda")

        def run(q=q, k=k):
            chunk_gated_delta_rule(q, k, v, g, beta, initial_state=state, output_final_state=True,
                                   use_qk_l2norm_in_kernel=True,
                                   cu_seqlens=starts if len(counts) > 1 else None)

        def run_repeated():
            run(q.repeat_interleave(3, 2), k.repeat_interleave(3, 2))

        try:
            print(f"flash-linear-attention {name}: {median_ms(run):.3f} ms")
        except Exception as error:  # releases without grouped value heads
            print(f"grouped heads refused ({type(error).__name__}), keys and queries repeated")
            print(f"flash-linear-attention {name}: {median_ms(run_repeated):.3f} ms")


if __name__ == "__main__":
    main()
