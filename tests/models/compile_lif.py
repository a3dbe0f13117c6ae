"""Run as a program: compile the Triton form of the LIF for a GPU that is not here; print registers, spills, loads and stores as JSON."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from snnexp.models import lif_triton

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
PLAIN = {"DECAY_INPUT": False, "EXACT": True, "SOFT_RESET": False, "AT_REST": True}
"""The preset tet at rest: the fewest registers."""
FULL = {"DECAY_INPUT": True, "EXACT": False, "SOFT_RESET": False, "AT_REST": False}
"""A general tau and a membrane that goes on: the most."""


def compiled(kernel, arch: int, dtype: torch.dtype, settings: dict) -> dict:
    """Compile a kernel for the compute capability `arch` (90 is 9.0), with addresses and numbers of neurons divisible by 16."""
    numbers = {"M": "i32"} | dict.fromkeys(("tau", "least", "threshold", "rest", "alpha"), "fp32")
    pointers = dict.fromkeys(("x", "spikes", "g_spikes", "g_x"), TYPES[dtype]) | {"counts": "i32"}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in settings else numbers.get(name, f"*{pointers.get(name, 'fp32')}") for name in names}
    aligned = {(k,): [["tt.divisibility", 16]] for k, name in enumerate(names) if signature[name].startswith("*") or name == "M"}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in settings.items()}, aligned)
    options = {"num_warps": lif_triton.WARPS, "enable_fp_fusion": False}
    assembly = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(assembly)
        assembler = Path(triton.__file__).parent / "backends/nvidia/bin" / ("ptxas-blackwell" if arch >= 100 else "ptxas")
        target = f"sm_{arch}" + ("a" if arch >= 90 else "")
        said = subprocess.run(
            [assembler, f"-arch={target}", "-v", path, "-o", os.devnull], capture_output=True, text=True, check=True
        ).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
        "spills": sum(int(number) for number in re.findall(r"(\d+) bytes spill", said)),
        "loads": re.findall(r"ld\.global\S*", assembly),
        "stores": re.findall(r"st\.global\S*", assembly),
    }


def main(arch: int) -> list[dict]:
    """Compile both kernels for T=10 and, in their fullest form, for a T that is not unrolled as a whole."""
    rows = []
    cases = [(10, torch.bfloat16, "plain"), (10, torch.bfloat16, "full"), (10, torch.float32, "full"), (17, torch.bfloat16, "full")]
    for T, dtype, form in cases:
        base = FULL if form == "full" else PLAIN
        base = base | {"T": T, "CHUNK": lif_triton.chunk(T)}
        full = form == "full"
        forward = base | {"COUNT": full, "BLOCK": lif_triton.forward_block(dtype)}
        backward = base | {"DETACH_RESET": False, "SURROGATE": 0 if full else 2, "FROM_SPIKES": True, "FROM_LAST": full, "TO_FIRST": full}
        backward["BLOCK"] = lif_triton.backward_block(T, dtype)
        for name, kernel, settings in (("forward", lif_triton.forward_kernel, forward), ("backward", lif_triton.backward_kernel, backward)):
            found = compiled(kernel, arch, dtype, settings)
            rows.append({"arch": arch, "kernel": name, "T": T, "dtype": TYPES[dtype], "form": form} | found)
    return rows


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
