"""A cocotb test in the simulation that a guest uses: it watches copies, then changes a register.

    VIADUCT_VPI=$(cocotb-config --lib-name-path vpi icarus) COCOTB_TEST_MODULES=watch \
    COCOTB_TOPLEVEL=dma PYGPI_PYTHON_BIN=$(command -v python3) TOPLEVEL_LANG=verilog \
    LIBPYTHON_LOC=$(cocotb-config --libpython) \
    viaduct cosim --sim icarus --top dma examples/dma/verilog/dma.sv --socket /tmp/dma.sock
"""

import cocotb
from cocotb.triggers import FallingEdge, RisingEdge


@cocotb.test()
async def watch(dut):
    for number in range(5):
        await RisingEdge(dut.finished)
        assert int(dut.busy.value) == 1
        assert int(dut.count.value) == number
        print(f"cocotb: copy {number} of {int(dut.len.value)} bytes", flush=True)
    # The driver finds it in the last register.
    await FallingEdge(dut.clk)
    dut.regs[15].value = 0xC0C07B
    # The end of the test would be the end of the simulation.
    while True:
        await RisingEdge(dut.finished)
