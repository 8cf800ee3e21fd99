// The DMA engine of examples/dma for the streams of a Xilinx PCI Express block (CQ, CC, RQ, RC), 64
// to 512 bits wide: chunks within lines of 64 bytes are read and written one after the other.
// viaduct: id=1234:0da7 bar0=4K intx=on msi=1 msix=1
module dma_pcie #(
    parameter WIDTH = 128, parameter DW = WIDTH / 32, parameter WIDE = WIDTH == 512
) (
    input  logic clk, rst_n,
    output logic irq,
    input  logic [WIDTH-1:0] s_axis_cq_tdata, s_axis_rc_tdata,
    input  logic [DW-1:0] s_axis_cq_tkeep, s_axis_rc_tkeep,
    input  logic [(WIDE ? 183 : 88)-1:0] s_axis_cq_tuser,
    input  logic [(WIDE ? 161 : 75)-1:0] s_axis_rc_tuser,
    input  logic s_axis_cq_tvalid, s_axis_cq_tlast, s_axis_rc_tvalid, s_axis_rc_tlast,
    output logic s_axis_cq_tready, s_axis_rc_tready,
    output logic [WIDTH-1:0] m_axis_cc_tdata, m_axis_rq_tdata,
    output logic [DW-1:0] m_axis_cc_tkeep, m_axis_rq_tkeep,
    output logic [(WIDE ? 81 : 33)-1:0] m_axis_cc_tuser,
    output logic [(WIDE ? 137 : 62)-1:0] m_axis_rq_tuser,
    output logic m_axis_cc_tvalid, m_axis_cc_tlast, m_axis_rq_tvalid, m_axis_rq_tlast,
    input  logic m_axis_cc_tready, m_axis_rq_tready
);
    // ---- packets of the driver: gathered, done, answered ----
    logic [31:0] cq [8];
    logic [3:0] cq_words;
    logic [7:0] enables;
    logic cq_there, cc_busy, cc_start;
    logic [31:0] regs [16];
    logic [31:0] count;
    logic busy, done, failed, pending, finished, bad;
    wire is_write = cq[2][14:11] == 1;
    wire [9:0] at = cq[0][11:2];
    wire [1:0] words = cq[2][1:0];
    wire start = cq_there && is_write && at == 7 && cq[4][7:0] == 1 && enables[0] && !busy;

    function automatic logic [1:0] first(input logic [3:0] be);
        return be[0] ? 0 : be[1] ? 1 : be[2] ? 2 : 3;
    endfunction
    function automatic logic [31:0] register(input logic [9:0] word);
        case (word) inside
            0:              return 32'h414d4456;
            8:              return {29'b0, failed, done, busy};
            9:              return {31'b0, pending};
            10:             return count;
            [2:6], [12:15]: return regs[word[3:0]];
            default:        return 0;
        endcase
    endfunction

    assign s_axis_cq_tready = !cq_there;
    assign cc_start = cq_there && !is_write && !cc_busy;
    assign irq = pending;
    always_ff @(posedge clk) begin
        if (s_axis_cq_tvalid && s_axis_cq_tready) begin
            for (int n = 0; n < DW; n++)
                if (32'(cq_words) + n < 8) cq[3'(cq_words) + 3'(n)] <= s_axis_cq_tdata[32*n +: 32];
            if (cq_words == 0)
                enables <= {s_axis_cq_tuser[WIDE ? 11 : 7 -: 4], s_axis_cq_tuser[3:0]};
            cq_words <= s_axis_cq_tlast ? 0 : cq_words + 4'(DW);
            cq_there <= s_axis_cq_tlast;
        end
        if (cq_there && is_write) begin
            for (int n = 0; n < 2; n++)
                for (int b = 0; b < 4; b++)
                    if (n < 32'(words) && enables[4*n + b] && at + 10'(n) inside {[2:6], [12:15]})
                        regs[4'(at) + 4'(n)][8*b +: 8] <= cq[4 + n][8*b +: 8];
            if (at == 9) pending <= 0;
        end
        if (cq_there && (is_write || cc_start)) cq_there <= 0;
        if (start) {busy, done, failed} <= 3'b100;
        if (finished) begin
            {busy, done, failed, pending} <= {2'b01, bad, 1'b1};
            count <= count + 1;
        end
        if (!rst_n) begin
            {cq_words, cq_there, busy, done, failed, pending} <= '0;
            count <= 0;
            for (int n = 0; n < 16; n++) regs[n] <= 0;
        end
    end

    wire [12:0] answered = {11'b0, words} * 4;   // only whole dwords are told apart from one
    wire [31:0] cc_0 = {3'b0, words == 1 ? 13'($countones(enables[3:0])) : answered, 9'b0, at[4:0],
                        words == 1 ? first(enables[3:0]) : 2'b0};
    packet_out #(.WIDTH(WIDTH), .WORDS(5)) cc_out (
        .clk, .rst_n, .start(cc_start), .busy(cc_busy), .count(5'd3 + 5'(words)),
        .words({register(at + 1), register(at), 24'b0, cq[3][7:0], cq[2][31:16], 14'b0, words,
                cc_0}),
        .tdata(m_axis_cc_tdata), .tkeep(m_axis_cc_tkeep), .tvalid(m_axis_cc_tvalid),
        .tlast(m_axis_cc_tlast), .tready(m_axis_cc_tready));
    assign m_axis_cc_tuser = 0;

    // ---- the copy ----
    enum logic [1:0] {IDLE, FETCH, AWAIT, STORE} state;
    logic [63:0] from, to;
    logic [20:0] left;
    logic [543:0] line;                          // what has come, from the first dword on
    logic [4:0] line_words;
    logic [1:0] header;                          // dwords of the completion's header that have come
    logic rq_busy, is_last;
    wire [20:0] from_room = 64 - 21'(from[5:0]), to_room = 64 - 21'(to[5:0]);
    wire [20:0] room = from_room < to_room ? from_room : to_room;
    wire [6:0] chunk = 7'(left < room ? left : room);
    wire [63:0] target = state == FETCH ? from : to;
    wire [6:0] end_of = 7'(target[1:0]) + chunk;
    wire [4:0] dwords = 5'((end_of + 7'd3) >> 2);
    wire [3:0] last_be = 4'hf >> (2'd0 - end_of[1:0]);
    wire [3:0] first_be = 4'hf << target[1:0] & (dwords == 1 ? last_be : 4'hf);
    wire rq_start = (state == FETCH || state == STORE) && !rq_busy && left != 0;
    wire [543:0] payload = line >> {from[1:0], 3'b0} << {to[1:0], 3'b0};

    assign s_axis_rc_tready = 1;
    assign finished = busy && state == IDLE && !rq_busy && !start;
    always_ff @(posedge clk) begin
        if (start) begin
            {from, to} <= {regs[3], regs[2], regs[5], regs[4]};
            left <= regs[6] > 1 << 20 ? 0 : regs[6][20:0];
            bad <= regs[6] > 1 << 20;
            state <= regs[6] > 1 << 20 || regs[6] == 0 ? IDLE : FETCH;
        end
        if (rq_start) begin
            state <= state == FETCH ? AWAIT : left == 21'(chunk) ? IDLE : FETCH;
            {header, line_words} <= 0;
            if (state == STORE)
                {from, to, left} <= {from + 64'(chunk), to + 64'(chunk), left - 21'(chunk)};
        end
        if (s_axis_rc_tvalid) begin
            logic [4:0] word;
            logic [1:0] seen;
            {word, seen} = {line_words, header};
            for (int n = 0; n < DW; n++) if (s_axis_rc_tkeep[n]) begin
                if (seen == 0) is_last <= s_axis_rc_tdata[32*n + 30];
                if (seen == 1 && s_axis_rc_tdata[32*n + 11 +: 3] != 0) bad <= 1;
                if (seen == 3) line[32*word +: 32] <= s_axis_rc_tdata[32*n +: 32];
                if (seen == 3) word += 1; else seen += 1;
            end
            line_words <= word;
            header <= s_axis_rc_tlast ? 0 : seen;
            if (s_axis_rc_tlast && (header != 0 ? is_last : s_axis_rc_tdata[30])) state <= STORE;
        end
        if (state == STORE && bad) state <= IDLE;
        if (!rst_n) begin
            state <= IDLE;
            {left, bad} <= '0;
        end
    end

    wire [31:0] rq_2 = {16'b0, 1'b0, 4'(state == STORE), 6'b0, dwords};
    packet_out #(.WIDTH(WIDTH), .WORDS(21)) rq_out (
        .clk, .rst_n, .start(rq_start && !(state == STORE && bad)), .busy(rq_busy),
        .count(5'd4 + (state == STORE ? dwords : 5'd0)),
        .words({payload, 32'b0, rq_2, target[63:2], 2'b0}),
        .tdata(m_axis_rq_tdata), .tkeep(m_axis_rq_tkeep), .tvalid(m_axis_rq_tvalid),
        .tlast(m_axis_rq_tlast), .tready(m_axis_rq_tready));
    always_ff @(posedge clk)
        if (rq_start) begin
            m_axis_rq_tuser <= '0;
            m_axis_rq_tuser[3:0] <= first_be;
            m_axis_rq_tuser[WIDE ? 11 : 7 -: 4] <= dwords == 1 ? 4'b0 : last_be;
        end
endmodule

// Sends `count` of the dwords `words`, the lowest first.
module packet_out #(parameter WIDTH = 128, parameter WORDS = 4, parameter DW = WIDTH / 32) (
    input  logic clk, rst_n, start,
    input  logic [32*WORDS-1:0] words,
    input  logic [4:0] count,
    output logic busy,
    output logic [WIDTH-1:0] tdata,
    output logic [DW-1:0] tkeep,
    output logic tvalid, tlast,
    input  logic tready
);
    logic [32*WORDS-1:0] rest;
    logic [4:0] left;
    assign {busy, tvalid} = {2{left != 0}};
    assign tlast = 32'(left) <= DW;
    assign tdata = WIDTH'(rest);
    assign tkeep = tlast ? ~({DW{1'b1}} << left) : '1;
    always_ff @(posedge clk) begin
        if (start) {rest, left} <= {words, count};
        else if (tvalid && tready) {rest, left} <= {rest >> WIDTH, tlast ? 5'd0 : left - 5'(DW)};
        if (!rst_n) left <= 0;
    end
endmodule
