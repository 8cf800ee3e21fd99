"""What cocotb alone needs for accesses of the DMA engine's registers, without a port or a guest."""

import os
import time

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

COUNT = int(os.environ.get("COUNT", "2000"))


async def write(dut, address, value):
    dut.s_axil_awaddr.value = address
    dut.s_axil_wdata.value = value
    dut.s_axil_awvalid.value = 1
    dut.s_axil_wvalid.value = 1
    # Taken in the cycle in which it is offered.
    await FallingEdge(dut.clk)
    dut.s_axil_awvalid.value = 0
    dut.s_axil_wvalid.value = 0
    while not dut.s_axil_bvalid.value:
        await FallingEdge(dut.clk)


@cocotb.test()
async def plain(dut):
    Clock(dut.clk, 4, "ns").start()
    for port in dut:
        if port._name.startswith("m_axi") and port._name.endswith(("ready", "valid", "resp")):
            if port._name not in ("m_axi_rready", "m_axi_bready", "m_axi_arvalid",
                                  "m_axi_awvalid", "m_axi_wvalid"):
                port.value = 0
    dut.s_axil_wstrb.value = 15
    dut.s_axil_bready.value = 1
    dut.s_axil_rready.value = 1
    dut.s_axil_arvalid.value = 0
    dut.s_axil_awvalid.value = 0
    dut.s_axil_wvalid.value = 0
    dut.rst_n.value = 0
    for _ in range(16):
        await FallingEdge(dut.clk)
    dut.rst_n.value = 1
    await FallingEdge(dut.clk)
    begin = time.process_time()
    for number in range(COUNT):
        await write(dut, 0x30, number)
    took = time.process_time() - begin
    assert int(dut.regs[12].value) == COUNT - 1
    print(f"cocotb: {COUNT} writes in {took:.6f} s of processor time", flush=True)
