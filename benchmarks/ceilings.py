"""Upper limits of this machine: memory copies and large matrix products. Rooflines are shares of these.

    python -m benchmarks.ceilings [--device cuda] [--out ceilings.json]

Random data, because products of zeros run faster. A copy counts the bytes read and the bytes written.
"""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import common
from dreamer_mpc.util.device import choose_device


def measure(device: torch.device, matrix: int | None = None, copy_mib: int | None = None) -> dict[str, float]:
    """GB/s of a copy, TFLOP/s of square products of size `matrix`: bf16 and TF32 on a GPU, fp32 on a CPU."""
    cuda = device.type == "cuda"
    matrix, copy_mib = matrix or (8192 if cuda else 2048), copy_mib or (2048 if cuda else 256)
    source = torch.randint(0, 256, (copy_mib * 2**20,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = common.timed(lambda: target.copy_(source), device, 10, 2.0, warmup=3)["ms"]
    result = {"copy_gb_s": 2 * len(source) / copy / 1e6, "copy_mib": copy_mib, "matrix": matrix}
    rates = {"bf16": torch.bfloat16, "tf32": torch.float32} if cuda else {"fp32": torch.float32}
    for name, dtype in rates.items():
        a, b = (torch.randn(matrix, matrix, device=device, dtype=dtype) for _ in range(2))
        ms = common.timed(lambda: a @ b, device, 10, 2.0, warmup=3)["ms"]  # noqa: B023
        result[f"{name}_tflops"] = 2 * matrix**3 / ms / 1e9
    return result


def load(path, device: torch.device) -> dict[str, float]:
    """The ceilings from the file `path`, or measured now."""
    return common.read(path)["ceilings"] if path else measure(device)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    parser = common.parser(__doc__)
    parser.add_argument("--matrix", type=int, help="size of the products; default: 8192 on a GPU, 2048 on a CPU")
    parser.add_argument("--copy-mib", type=int, help="size of the copy; default: 2048 on a GPU, 256 on a CPU")
    args, rest = parser.parse_known_args(argv)
    device = choose_device(common.parse_settings(rest).device)
    found = measure(device, args.matrix, args.copy_mib)
    record = {"benchmark": "ceilings", **common.describe(device), "ceilings": found}
    names = {"copy_gb_s": "copy, GB/s", "bf16_tflops": "bf16, TFLOP/s", "tf32_tflops": "TF32, TFLOP/s"}
    names |= {"fp32_tflops": "fp32, TFLOP/s"}
    common.print_table(
        f"Ceilings: {record['device']}", {"what": "what", "rate": "rate"},
        [{"what": name, "rate": found[key]} for key, name in names.items() if key in found],
    )  # fmt: skip
    common.write(args.out, record)
    return record


if __name__ == "__main__":
    main()
