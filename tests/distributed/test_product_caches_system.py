"""What torch keeps of products of many shapes, in processes of their own: it reads its bounds
once."""

import subprocess
import sys

import pytest

from sce.model.arithmetic import multiplies_bfloat16

SHAPES = 600
PROGRAM = f"""
import ctypes, gc, sys, torch
from pathlib import Path
from sce.distributed.resources import bound_products
if sys.argv[1] == "bound":
    bound_products()
def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
torch.set_num_threads(1)
weight = torch.zeros(1536, 384, dtype=torch.bfloat16)
with torch.inference_mode():
    for rows in range(8, 8 + {SHAPES}):
        if rows == 18:
            before = resident()
        torch.nn.functional.linear(torch.zeros(rows, 384, dtype=torch.bfloat16), weight)
print((resident() - before) // 2**20)
"""

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.mark.skipif(not multiplies_bfloat16("cpu"), reason="products of float32 are not kept")
def test_products_of_many_shapes_do_not_fill_the_memory():
    grown = {
        how: int(subprocess.check_output([sys.executable, "-c", PROGRAM, how], text=True))
        for how in ("bound", "free")
    }
    print(f"\n{SHAPES} shapes: {grown} MB")
    assert grown["bound"] < 100
    assert grown["free"] > 1.5 * grown["bound"]
