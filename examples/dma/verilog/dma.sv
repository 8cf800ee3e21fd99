// A DMA engine with the registers of examples/dma/README.md: AXI4-Lite registers, an AXI4 master of
// WIDTH bits, and a line that is up while an interrupt is pending.
// viaduct: id=1234:0da7 bar0=4K intx=on msi=1 msix=1
module dma #(parameter WIDTH = 256, parameter BYTES = WIDTH / 8, parameter LANES = $clog2(BYTES)) (
    input  logic clk, rst_n,
    output logic irq,

    input  logic [11:0] s_axil_awaddr, s_axil_araddr,
    input  logic [31:0] s_axil_wdata,
    input  logic [3:0] s_axil_wstrb,
    input  logic s_axil_awvalid, s_axil_wvalid, s_axil_bready, s_axil_arvalid, s_axil_rready,
    output logic s_axil_awready, s_axil_wready, s_axil_bvalid, s_axil_arready, s_axil_rvalid,
    output logic [31:0] s_axil_rdata,
    output logic [1:0] s_axil_bresp, s_axil_rresp,

    output logic [63:0] m_axi_araddr, m_axi_awaddr,
    output logic [7:0] m_axi_arlen, m_axi_awlen,
    output logic m_axi_arvalid, m_axi_awvalid, m_axi_wvalid, m_axi_wlast,
    output logic m_axi_rready, m_axi_bready,
    input  logic m_axi_arready, m_axi_awready, m_axi_wready, m_axi_rvalid, m_axi_bvalid,
    input  logic [WIDTH-1:0] m_axi_rdata,
    output logic [WIDTH-1:0] m_axi_wdata,
    output logic [BYTES-1:0] m_axi_wstrb,
    input  logic [1:0] m_axi_rresp, m_axi_bresp
);
    // ---- registers ----
    logic [31:0] regs [16];
    logic [31:0] count;
    logic busy, done, failed, pending, start, finished, bad;
    wire [63:0] source = {regs[3], regs[2]}, destination = {regs[5], regs[4]};
    wire [31:0] len = regs[6];
    wire take = s_axil_awvalid && s_axil_wvalid && (!s_axil_bvalid || s_axil_bready);
    wire [9:0] to = s_axil_awaddr[11:2], from = s_axil_araddr[11:2];

    // Registers that hold what was written.
    function automatic logic is_plain(input logic [9:0] n);
        return n >= 2 && n <= 6 || n >= 12 && n <= 15;
    endfunction

    assign {s_axil_awready, s_axil_wready} = {take, take};
    assign s_axil_arready = !s_axil_rvalid || s_axil_rready;
    assign {s_axil_bresp, s_axil_rresp} = '0;
    assign irq = pending;
    assign start = take && to == 7 && s_axil_wdata[7:0] == 1 && !busy;

    always_ff @(posedge clk) begin
        if (s_axil_bready) s_axil_bvalid <= 0;
        if (take) begin
            s_axil_bvalid <= 1;
            for (int n = 0; n < 4; n++)
                if (s_axil_wstrb[n] && is_plain(to))
                    regs[to[3:0]][8*n +: 8] <= s_axil_wdata[8*n +: 8];
            if (to == 9) pending <= 0;
        end
        if (s_axil_rready) s_axil_rvalid <= 0;
        if (s_axil_arvalid && s_axil_arready) begin
            s_axil_rvalid <= 1;
            case (from)
                0:                s_axil_rdata <= 32'h414d4456;
                8:                s_axil_rdata <= {29'b0, failed, done, busy};
                9:                s_axil_rdata <= {31'b0, pending};
                10:               s_axil_rdata <= count;
                default:          s_axil_rdata <= is_plain(from) ? regs[from[3:0]] : 0;
            endcase
        end
        if (start) {busy, done, failed} <= 3'b100;
        if (finished) begin
            {busy, done, failed, pending} <= {2'b01, bad, 1'b1};
            count <= count + 1;
        end
        if (!rst_n) begin
            {s_axil_bvalid, s_axil_rvalid, busy, done, failed, pending} <= '0;
            count <= 0;
            for (int n = 0; n < 16; n++) regs[n] <= 0;
        end
    end

    // ---- the copy: words of the source through a buffer, shifted into those of the target ----
    // Bursts end where an address is a multiple of 16 words, so none crosses 4 KiB.
    logic [WIDTH-1:0] buffer [64];
    logic [WIDTH-1:0] last;                 // the word of the source before the next one
    logic [6:0] filled, emptied, promised;  // words that have come, gone and been asked for
    logic [63-LANES:0] ar, aw, w;           // addresses in words
    logic [20:0] ar_left, aw_left, in_left, w_left, answers;
    logic primed, first;
    wire [LANES-1:0] s = source[LANES-1:0], d = destination[LANES-1:0], shift = s - d;
    wire [LANES-1:0] tail = d + len[LANES-1:0];
    wire [20:0] ar_room = 16 - 21'(ar[3:0]), aw_room = 16 - 21'(aw[3:0]);
    wire [20:0] ar_beats = ar_left < ar_room ? ar_left : ar_room;
    wire [20:0] aw_beats = aw_left < aw_room ? aw_left : aw_room;
    wire word_is_there = in_left == 0 || filled != emptied;
    wire prime = busy && !primed && word_is_there;
    wire step = busy && primed && w_left != 0 && word_is_there && (!m_axi_wvalid || m_axi_wready);
    wire ar_ends = m_axi_arvalid && m_axi_arready, aw_ends = m_axi_awvalid && m_axi_awready;
    wire [WIDTH-1:0] next = buffer[emptied[5:0]];

    assign m_axi_araddr = {ar, {LANES{1'b0}}};
    assign m_axi_awaddr = {aw, {LANES{1'b0}}};
    assign m_axi_arlen = 8'(ar_beats - 1);
    assign m_axi_awlen = 8'(aw_beats - 1);
    assign {m_axi_rready, m_axi_bready} = '1;
    assign m_axi_arvalid = ar_left != 0 && 7'(promised - emptied) <= 48;
    assign m_axi_awvalid = aw_left != 0;
    assign finished = busy && !start && {ar_left, aw_left, w_left, answers} == '0
                      && !m_axi_wvalid && filled == promised;

    always_ff @(posedge clk) begin
        if (start) begin
            {ar, aw, w} <= {source[63:LANES], destination[63:LANES], destination[63:LANES]};
            {filled, emptied, promised, answers, first} <= 1;
            primed <= s < d;  // else the first word has to be there before anything can be written
            bad <= len > 1 << 20;
            if (len != 0 && len <= 1 << 20) begin
                {ar_left, in_left} <= {2{21'((32'(s) + len + BYTES - 1) >> LANES)}};
                {aw_left, w_left} <= {2{21'((32'(d) + len + BYTES - 1) >> LANES)}};
            end
        end
        if (ar_ends) begin
            ar <= ar + (64-LANES)'(ar_beats);
            ar_left <= ar_left - ar_beats;
            promised <= promised + 7'(ar_beats);
        end
        if (m_axi_rvalid) begin
            buffer[filled[5:0]] <= m_axi_rdata;
            filled <= filled + 1;
        end
        if (prime) primed <= 1;
        if (prime || step) begin
            last <= next;
            if (in_left != 0) {in_left, emptied} <= {in_left - 21'd1, emptied + 7'd1};
        end
        if (m_axi_wready) m_axi_wvalid <= 0;
        if (step) begin
            m_axi_wvalid <= 1;
            m_axi_wdata <= WIDTH'({next, last} >> {shift, 3'b0});
            m_axi_wstrb <= bad ? '0 : (first ? {BYTES{1'b1}} << d : '1)
                           & (w_left == 1 && tail != 0 ? ~({BYTES{1'b1}} << tail) : '1);
            m_axi_wlast <= w_left == 1 || w[3:0] == 15;
            {w, w_left, first} <= {w + 1'b1, w_left - 21'd1, 1'b0};
        end
        if (aw_ends) {aw, aw_left} <= {aw + (64-LANES)'(aw_beats), aw_left - aw_beats};
        answers <= start ? 0 : answers + 21'(aw_ends) - 21'(m_axi_bvalid);
        if (m_axi_rvalid && m_axi_rresp[1] || m_axi_bvalid && m_axi_bresp[1]) bad <= 1;
        if (!rst_n)
            {ar_left, aw_left, w_left, in_left, m_axi_wvalid, answers, filled, promised} <= '0;
    end
endmodule
