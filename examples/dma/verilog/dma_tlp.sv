// The DMA engine of examples/dma with transaction layer packets as they are, 64 to 512 bits a beat:
// four reads outstanding, their completions in any order and any number of pieces, a ring of 1 KiB
// between what comes and what goes, MSI as a memory write, MSI-X by a pulse.
// viaduct: id=1234:0da7 bar0=4K intx=on msi=1 msix=1
module dma_tlp #(parameter WIDTH = 128, parameter DW = WIDTH / 32) (
    input  logic clk, rst_n,
    output logic irq,
    input  logic [2:0] cfg_max_read_req,
    input  logic [7:0] cfg_bus_number,
    input  logic cfg_msi_enable, cfg_interrupt_msix_enable,
    input  logic [63:0] cfg_msi_address,
    input  logic [31:0] cfg_msi_data,
    input  logic [WIDTH-1:0] rx_tdata,
    input  logic [DW-1:0] rx_tkeep,
    input  logic rx_tvalid, rx_tlast,
    output logic rx_tready,
    output logic [WIDTH-1:0] tx_tdata,
    output logic [DW-1:0] tx_tkeep,
    output logic tx_tvalid, tx_tlast,
    input  logic tx_tready
);
    typedef enum logic [1:0] {ANSWER, STORE, READ, MSI} kind_t;
    kind_t out_kind;
    logic out_start, out_busy;

    function automatic logic [31:0] swapped(input logic [31:0] d);
        return {d[7:0], d[15:8], d[23:16], d[31:24]};
    endfunction
    function automatic logic [3:0] from_byte(input logic [1:0] n);
        return 4'hf << n;
    endfunction
    function automatic logic [3:0] to_byte(input logic [1:0] n);    // up to before it; 0: all
        return 4'hf >> (2'd0 - n);
    endfunction

    // ---- a packet is gathered, then looked at: a header, and up to 128 bytes ----
    logic [31:0] in [36];
    logic [5:0] in_words;
    logic in_there, in_done;
    wire is_wide = in[0][29], is_write = in[0][30] && in[0][28:24] == 0;
    wire is_read = !in[0][30] && in[0][28:24] == 0, is_answer = in[0][28:24] == 5'h0a;
    wire [31:0] in_address = is_wide ? in[3] : in[2];
    wire [9:0] at = in_address[11:2];
    wire [31:0] in_data = swapped(is_wide ? in[4] : in[3]);
    wire [3:0] enables = in[1][3:0];
    function automatic logic [7:0] in_byte(input logic [6:0] n);   // of a completion's payload
        logic [7:0] place = 8'(n) + 8'(in[2][1:0]);
        return in[3 + place[7:2]][{2'd3 - place[1:0], 3'b0} +: 8];
    endfunction
    assign rx_tready = !in_there;
    assign in_done = in_there && (!is_read || out_start && out_kind == ANSWER);

    always_ff @(posedge clk) begin
        if (rx_tvalid && rx_tready) begin
            for (int n = 0; n < DW; n++)
                if (32'(in_words) + n < 36) in[in_words + 6'(n)] <= rx_tdata[32*n +: 32];
            in_words <= rx_tlast ? 0 : in_words + 6'(DW);
            in_there <= rx_tlast;
        end
        if (in_done) in_there <= 0;
        if (!rst_n) {in_words, in_there} <= '0;
    end

    // ---- registers; a driver's accesses are of one dword ----
    logic [31:0] regs [16];
    logic [31:0] count, value;
    logic busy, done, failed, pending, finished, bad, to_send_msi;
    wire start = in_there && is_write && at == 7 && in_data[7:0] == 1 && enables[0] && !busy;
    wire too_long = regs[6] > 1 << 20;
    always_comb case (at) inside
        0:              value = 32'h414d4456;
        8:              value = {29'b0, failed, done, busy};
        9:              value = {31'b0, pending};
        10:             value = count;
        [2:6], [12:15]: value = regs[at[3:0]];
        default:        value = 0;
    endcase
    assign irq = cfg_interrupt_msix_enable ? finished : pending && !cfg_msi_enable;

    always_ff @(posedge clk) begin
        if (in_there && is_write && at inside {[2:6], [12:15]})
            for (int b = 0; b < 4; b++)
                if (enables[b]) regs[at[3:0]][8*b +: 8] <= in_data[8*b +: 8];
        if (in_there && is_write && at == 9) pending <= 0;
        if (start) {busy, done, failed} <= 3'b100;
        if (finished) begin
            {busy, done, failed, pending} <= {2'b01, bad, 1'b1};
            count <= count + 1;
        end
        if (!rst_n) begin
            {busy, done, failed, pending} <= '0;
            count <= 0;
            for (int n = 0; n < 16; n++) regs[n] <= 0;
        end
    end

    // ---- reads: of up to 256 bytes, not across a multiple of that; a tag has its place ----
    logic [63:0] from, to;
    logic [20:0] to_ask, to_store;              // bytes
    logic [7:0] ring [1024];
    logic [9:0] ask_at, store_at;               // where in the ring the next byte goes, or is
    logic [9:0] end_at [4];
    logic [8:0] missing [4];                    // bytes of each read that have not come
    logic [8:0] asked_for [4];
    logic [1:0] ask_tag, oldest;
    logic [10:0] used, ready;                   // bytes of the ring given to reads; that have come
    logic [3:0] under_way;
    wire [8:0] most = cfg_max_read_req == 0 ? 9'd128 : 9'd256;
    wire [8:0] ask_room = most - (9'(from[7:0]) & (most - 9'd1));
    wire [8:0] ask_len = to_ask < 21'(ask_room) ? 9'(to_ask) : ask_room;
    wire may_ask = to_ask != 0 && !under_way[ask_tag] && used + 11'(ask_len) <= 1024 && !bad;
    wire [7:0] store_room = 8'd128 - 8'(to[6:0]);
    wire [7:0] store_len = to_store < 21'(store_room) ? 8'(to_store) : store_room;
    wire asks = out_start && out_kind == READ, stores = out_start && out_kind == STORE;
    wire retires = under_way[oldest] && missing[oldest] == 0;

    wire [1:0] tag = in[2][9:8];
    wire [11:0] left = in[1][11:0];
    wire [9:0] answer_words = in[0][9:0];
    wire [8:0] in_place = 9'(answer_words << 2) - 9'(in[2][1:0]);
    wire [8:0] in_len = 12'(in_place) < left ? in_place : left[8:0];
    assign finished = busy && !start && to_store == 0 && under_way == 0 && !out_busy;

    always_ff @(posedge clk) begin
        logic [10:0] now_used, now_ready;
        {now_used, now_ready} = {used, ready};
        if (in_there && is_answer && under_way[tag]) begin
            if (in[1][15:13] != 0) {bad, missing[tag]} <= {1'b1, 9'b0};
            else begin
                for (int n = 0; n < 128; n++)
                    if (9'(n) < in_len) ring[end_at[tag] - left[9:0] + 10'(n)] <= in_byte(7'(n));
                missing[tag] <= missing[tag] - in_len;
            end
        end
        if (retires) begin
            now_ready += 11'(asked_for[oldest]);
            under_way[oldest] <= 0;
            oldest <= oldest + 1;
        end
        if (asks) begin
            now_used += 11'(ask_len);
            {from, ask_at} <= {from + 64'(ask_len), ask_at + 10'(ask_len)};
            to_ask <= to_ask - 21'(ask_len);
            end_at[ask_tag] <= ask_at + 10'(ask_len);
            {missing[ask_tag], asked_for[ask_tag]} <= {ask_len, ask_len};
            under_way[ask_tag] <= 1;
            ask_tag <= ask_tag + 1;
        end
        if (stores) begin
            now_used -= 11'(store_len);
            now_ready -= 11'(store_len);
            {to, store_at} <= {to + 64'(store_len), store_at + 10'(store_len)};
            to_store <= to_store - 21'(store_len);
        end
        {used, ready} <= {now_used, now_ready};
        if (bad) {to_ask, to_store} <= '0;
        if (start) begin
            {from, to} <= {regs[3], regs[2], regs[5], regs[4]};
            {to_ask, to_store} <= too_long ? '0 : {2{regs[6][20:0]}};
            {used, ready, ask_at, store_at, bad} <= {42'b0, too_long};
        end
        if (!rst_n) {to_ask, to_store, under_way, ask_tag, oldest, used, ready, bad} <= '0;
    end

    // ---- what goes out: answers first, then writes of up to 128 bytes, then reads ----
    logic [31:0] payload [33];
    wire may_store = to_store != 0 && ready >= 11'(store_len) && !bad;
    wire [63:0] target = out_kind == MSI ? cfg_msi_address : out_kind == STORE ? to : from;
    wire [8:0] len = out_kind == MSI ? 9'd4 : out_kind == STORE ? 9'(store_len) : ask_len;
    wire [8:0] end_of = 9'(target[1:0]) + len;
    wire [9:0] dwords = 10'((end_of + 9'd3) >> 2);
    wire [3:0] last_be = dwords == 1 ? 4'd0 : to_byte(end_of[1:0]);
    wire [3:0] first_be = from_byte(target[1:0]) & (dwords == 1 ? to_byte(end_of[1:0]) : 4'hf);
    wire wide = target[63:32] != 0;
    wire [15:0] me = {cfg_bus_number, 8'b0};
    wire [1:0] first_on = enables[0] ? 0 : enables[1] ? 1 : enables[2] ? 2 : 3;
    logic [2:0] on;
    always_comb begin
        on = 3'($countones(enables));
        if (in_there && is_read) out_kind = ANSWER;
        else if (to_send_msi) out_kind = MSI;
        else if (may_store) out_kind = STORE;
        else out_kind = READ;
        out_start = !out_busy && (in_there && is_read || to_send_msi || may_store || may_ask);
        for (int n = 0; n < 33; n++) begin
            for (int b = 0; b < 4; b++)
                payload[n][8 * (3 - b) +: 8] = ring[store_at + 10'(4 * n + b) - 10'(to[1:0])];
        end
        if (out_kind == ANSWER) payload[0] = swapped(value);
        if (out_kind == MSI) payload[0] = swapped(cfg_msi_data);
    end
    always_ff @(posedge clk) begin
        if (finished && cfg_msi_enable) to_send_msi <= 1;
        if (out_start && out_kind == MSI) to_send_msi <= 0;
        if (!rst_n) to_send_msi <= 0;
    end

    logic [36*32-1:0] rest;
    logic [5:0] rest_words;
    wire [5:0] header_words = out_kind != ANSWER && wide ? 4 : 3;
    wire [31:0] head = out_kind == ANSWER ? {8'h4a, 24'd1}
                     : {1'b0, out_kind != READ, wide, 19'b0, dwords};
    wire [31:0] head_1 = out_kind == ANSWER ? {me, 4'b0, 9'b0, on}
                       : {me, 6'b0, ask_tag, last_be, first_be};
    wire [31:0] head_2 = out_kind == ANSWER ? {in[1][31:8], 1'b0, at[4:0], first_on}
                       : wide ? target[63:32] : {target[31:2], 2'b0};
    assign {out_busy, tx_tvalid} = {2{rest_words != 0}};
    assign tx_tlast = 32'(rest_words) <= DW;
    assign tx_tdata = WIDTH'(rest);
    assign tx_tkeep = tx_tlast ? ~({DW{1'b1}} << rest_words) : '1;
    always_ff @(posedge clk) begin
        if (out_start) begin
            rest[95:0] <= {head_2, head_1, head};
            if (header_words == 4) rest[127:96] <= {target[31:2], 2'b0};
            for (int n = 0; n < 32; n++) rest[32 * (n + 32'(header_words)) +: 32] <= payload[n];
            rest_words <= header_words
                + (out_kind == READ ? 0 : out_kind == ANSWER ? 1 : 6'(dwords));
        end else if (tx_tvalid && tx_tready) begin
            rest <= rest >> WIDTH;
            rest_words <= tx_tlast ? 0 : rest_words - 6'(DW);
        end
        if (!rst_n) rest_words <= 0;
    end
endmodule
