// An accelerator that sorts 1024 words of 32 bits: from host memory, and back to it.
//
//     0x00 ID "SORT"   0x08 SOURCE   0x10 DESTINATION   0x18 COMMAND: 1 starts
//     0x1c STATUS: bit 0 busy, 1 done, 2 failed         0x20 PENDING: written to acknowledge
//
// Addresses are multiples of 32. Words come in from the DMA engine eight at a time; each cycle of
// sorting compares all pairs of neighbours that begin with an even place, then those that begin
// with an odd one (odd-even transposition sort), so 1024 words take 512 cycles.
// viaduct: id=1234:5047 bar0=4K intx=on msi=1 msix=1
module sort #(parameter WORDS = 1024) (
    input  logic clk, rst_n,
    output logic irq,

    input  logic [11:0] s_axil_awaddr, s_axil_araddr,
    input  logic [31:0] s_axil_wdata,
    input  logic s_axil_awvalid, s_axil_wvalid, s_axil_bready, s_axil_arvalid, s_axil_rready,
    output logic s_axil_awready, s_axil_wready, s_axil_bvalid, s_axil_arready, s_axil_rvalid,
    output logic [31:0] s_axil_rdata,

    output logic [63:0] m_axi_araddr, m_axi_awaddr,
    output logic [7:0] m_axi_arlen, m_axi_awlen,
    output logic m_axi_arvalid, m_axi_awvalid, m_axi_wvalid, m_axi_wlast,
    output logic m_axi_rready, m_axi_bready,
    input  logic m_axi_arready, m_axi_awready, m_axi_wready, m_axi_rvalid, m_axi_bvalid,
    input  logic [255:0] m_axi_rdata,
    output logic [255:0] m_axi_wdata,
    input  logic [1:0] m_axi_rresp, m_axi_bresp
);
    localparam BEATS = WORDS / 8, N = $clog2(BEATS);
    localparam logic [N:0] ALL = (N+1)'(BEATS);
    logic [31:0] regs [4];                      // source and destination, low and high halves
    logic busy, done, pending, dma_done, failed;
    wire take = s_axil_awvalid && s_axil_wvalid && !s_axil_bvalid;
    wire start = take && s_axil_awaddr == 'h18 && s_axil_wdata[0] && !busy;

    assign {s_axil_awready, s_axil_wready, s_axil_arready} = {take, take, !s_axil_rvalid};
    assign irq = pending;

    always_ff @(posedge clk) begin
        if (s_axil_bready) s_axil_bvalid <= 0;
        if (take) begin
            s_axil_bvalid <= 1;
            if (s_axil_awaddr inside {['h08:'h14]}) regs[s_axil_awaddr[3:2] ^ 2] <= s_axil_wdata;
            if (s_axil_awaddr == 'h20) pending <= 0;
        end
        if (s_axil_rready) s_axil_rvalid <= 0;
        if (s_axil_arvalid && s_axil_arready) begin
            s_axil_rvalid <= 1;
            case (s_axil_araddr)
                'h00:    s_axil_rdata <= 32'h54524f53;
                'h1c:    s_axil_rdata <= {29'b0, failed, done, busy};
                'h20:    s_axil_rdata <= {31'b0, pending};
                default: s_axil_rdata <= regs[s_axil_araddr[3:2] ^ 2];
            endcase
        end
        if (start) {busy, done} <= 2'b10;
        if (dma_done) {busy, done, pending} <= 3'b011;
        if (!rst_n) {s_axil_bvalid, s_axil_rvalid, busy, done, pending} <= '0;
    end

    // ---- the words ----
    logic [31:0] words [WORDS];
    logic [N:0] filled, emptied;
    logic [$clog2(WORDS):0] rounds;
    logic in_valid, in_ready, out_valid, out_ready;
    logic [255:0] in_data, out_data;

    assign in_ready = busy && filled != ALL;
    assign out_valid = busy && filled == ALL && rounds == WORDS / 2 && emptied != ALL;
    always_comb
        for (int n = 0; n < 8; n++) out_data[32*n +: 32] = words[{emptied[N-1:0], 3'(n)}];

    always_ff @(posedge clk) begin
        if (start) {filled, emptied, rounds} <= '0;
        if (in_valid && in_ready) begin
            for (int n = 0; n < 8; n++) words[{filled[N-1:0], 3'(n)}] <= in_data[32*n +: 32];
            filled <= filled + 1;
        end else if (busy && filled == ALL && rounds != WORDS / 2) begin
            logic [31:0] next [WORDS];
            next = words;
            for (int odd = 0; odd < 2; odd++)
                for (int n = odd; n + 1 < WORDS; n += 2)
                    if (next[n] > next[n + 1]) begin
                        logic [31:0] larger;
                        larger = next[n];
                        next[n] = next[n + 1];
                        next[n + 1] = larger;
                    end
            words <= next;
            rounds <= rounds + 1;
        end
        if (out_valid && out_ready) emptied <= emptied + 1;
    end

    axi_dma dma (
        .clk, .rst_n, .start, .source({regs[1], regs[0]}), .destination({regs[3], regs[2]}),
        .count(16'(BEATS)), .done(dma_done), .failed,
        .m_axis_tdata(in_data), .m_axis_tvalid(in_valid), .m_axis_tready(in_ready),
        .s_axis_tdata(out_data), .s_axis_tvalid(out_valid), .s_axis_tready(out_ready), .*
    );
endmodule
