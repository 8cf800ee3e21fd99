// The DMA engine of examples/dma behind a core that has descriptors and AXI4-Streams: what is read
// goes through a register and is written.
// viaduct: id=1234:0da7 bar0=4K msi=1 msix=1
module dma_streams #(parameter WIDTH = 128) (
    input  logic clk, rst_n,
    output logic irq_req,
    input  logic irq_ack,

    input  logic [11:0] s_axil_awaddr, s_axil_araddr,
    input  logic [31:0] s_axil_wdata,
    input  logic [3:0] s_axil_wstrb,
    input  logic s_axil_awvalid, s_axil_wvalid, s_axil_bready, s_axil_arvalid, s_axil_rready,
    output logic s_axil_awready, s_axil_wready, s_axil_bvalid, s_axil_arready, s_axil_rvalid,
    output logic [31:0] s_axil_rdata,

    output logic [63:0] m_axis_read_desc_addr, m_axis_write_desc_addr,
    output logic [20:0] m_axis_read_desc_len, m_axis_write_desc_len,
    output logic m_axis_read_desc_valid, m_axis_write_desc_valid,
    input  logic m_axis_read_desc_ready, m_axis_write_desc_ready,
    input  logic s_axis_read_desc_status_valid, s_axis_read_desc_status_error,
    input  logic s_axis_write_desc_status_valid, s_axis_write_desc_status_error,
    input  logic [WIDTH-1:0] s_axis_read_data_tdata,
    input  logic [WIDTH/8-1:0] s_axis_read_data_tkeep,
    input  logic s_axis_read_data_tvalid, s_axis_read_data_tlast,
    output logic s_axis_read_data_tready,
    output logic [WIDTH-1:0] m_axis_write_data_tdata,
    output logic [WIDTH/8-1:0] m_axis_write_data_tkeep,
    output logic m_axis_write_data_tvalid, m_axis_write_data_tlast,
    input  logic m_axis_write_data_tready
);
    logic [31:0] regs [16];
    logic [31:0] count;
    logic busy, done, failed, pending, fetched;
    wire take = s_axil_awvalid && s_axil_wvalid && !s_axil_bvalid;
    wire [9:0] to = s_axil_awaddr[11:2], from = s_axil_araddr[11:2];
    wire start = take && to == 7 && s_axil_wdata[7:0] == 1 && !busy;
    wire is_long = regs[6] > 1 << 20;

    assign {s_axil_awready, s_axil_wready, s_axil_arready} = {take, take, !s_axil_rvalid};
    assign {m_axis_read_desc_addr, m_axis_write_desc_addr} = {regs[3], regs[2], regs[5], regs[4]};
    assign {m_axis_read_desc_len, m_axis_write_desc_len} = {2{regs[6][20:0]}};
    assign s_axis_read_data_tready = !m_axis_write_data_tvalid || m_axis_write_data_tready;

    task automatic finish(input logic bad);
        {busy, done, failed, pending, irq_req} <= {2'b01, bad, 2'b11};
        count <= count + 1;
    endtask

    always_ff @(posedge clk) begin
        if (s_axil_bready) s_axil_bvalid <= 0;
        if (take) begin
            s_axil_bvalid <= 1;
            for (int n = 0; n < 4; n++)
                if (s_axil_wstrb[n] && to inside {[2:6], [12:15]})
                    regs[to[3:0]][8*n +: 8] <= s_axil_wdata[8*n +: 8];
            if (to == 9) pending <= 0;
        end
        if (s_axil_rready) s_axil_rvalid <= 0;
        if (s_axil_arvalid && s_axil_arready) begin
            s_axil_rvalid <= 1;
            case (from) inside
                0:                s_axil_rdata <= 32'h414d4456;
                8:                s_axil_rdata <= {29'b0, failed, done, busy};
                9:                s_axil_rdata <= {31'b0, pending};
                10:               s_axil_rdata <= count;
                [2:6], [12:15]:   s_axil_rdata <= regs[from[3:0]];
                default:          s_axil_rdata <= 0;
            endcase
        end

        // ---- the copy: the write's descriptor goes out when there is something to write ----
        if (start) begin
            {busy, done, failed, fetched} <= 4'b1000;
            m_axis_read_desc_valid <= !is_long;
            if (is_long) finish(1);
        end
        if (m_axis_read_desc_valid && m_axis_read_desc_ready) m_axis_read_desc_valid <= 0;
        if (m_axis_write_desc_valid && m_axis_write_desc_ready) m_axis_write_desc_valid <= 0;
        if (s_axis_read_data_tvalid && s_axis_read_data_tready && !fetched)
            {fetched, m_axis_write_desc_valid} <= 2'b11;
        if (m_axis_write_data_tready) m_axis_write_data_tvalid <= 0;
        if (s_axis_read_data_tvalid && s_axis_read_data_tready) begin
            m_axis_write_data_tvalid <= 1;
            {m_axis_write_data_tdata, m_axis_write_data_tkeep, m_axis_write_data_tlast}
                <= {s_axis_read_data_tdata, s_axis_read_data_tkeep, s_axis_read_data_tlast};
        end
        if (s_axis_read_desc_status_valid && (s_axis_read_desc_status_error || regs[6] == 0))
            finish(s_axis_read_desc_status_error);
        if (s_axis_write_desc_status_valid) finish(s_axis_write_desc_status_error);
        if (irq_req && irq_ack) irq_req <= 0;
        if (!rst_n) begin
            {s_axil_bvalid, s_axil_rvalid, busy, done, failed, pending, irq_req} <= '0;
            {m_axis_read_desc_valid, m_axis_write_desc_valid, m_axis_write_data_tvalid} <= '0;
            count <= 0;
            for (int n = 0; n < 16; n++) regs[n] <= 0;
        end
    end
endmodule
