// Moves whole words between host memory and streams: COUNT words from SOURCE to m_axis, COUNT words
// from s_axis to DESTINATION. Addresses are multiples of a word of the bus. Bursts of 16 words that
// end where an address is a multiple of 16 words, so none crosses 4 KiB.
module axi_dma #(parameter WIDTH = 256, parameter LANES = $clog2(WIDTH / 8)) (
    input  logic clk, rst_n, start,
    input  logic [63:0] source, destination,
    input  logic [15:0] count,
    output logic done, failed,

    output logic [63:0] m_axi_araddr, m_axi_awaddr,
    output logic [7:0] m_axi_arlen, m_axi_awlen,
    output logic m_axi_arvalid, m_axi_awvalid, m_axi_wvalid, m_axi_wlast,
    output logic m_axi_rready, m_axi_bready,
    input  logic m_axi_arready, m_axi_awready, m_axi_wready, m_axi_rvalid, m_axi_bvalid,
    input  logic [WIDTH-1:0] m_axi_rdata,
    output logic [WIDTH-1:0] m_axi_wdata,
    input  logic [1:0] m_axi_rresp, m_axi_bresp,

    output logic [WIDTH-1:0] m_axis_tdata,
    output logic m_axis_tvalid,
    input  logic m_axis_tready,
    input  logic [WIDTH-1:0] s_axis_tdata,
    input  logic s_axis_tvalid,
    output logic s_axis_tready
);
    logic [63-LANES:0] ar, aw;                  // addresses in words
    logic [15:0] ar_left, aw_left, w_left, answers;
    logic [3:0] w;                              // place of the next word in its burst
    logic active;
    wire [15:0] ar_room = 16 - 16'(ar[3:0]), aw_room = 16 - 16'(aw[3:0]);
    wire [15:0] ar_beats = ar_left < ar_room ? ar_left : ar_room;
    wire [15:0] aw_beats = aw_left < aw_room ? aw_left : aw_room;

    assign m_axi_araddr = {ar, {LANES{1'b0}}};
    assign m_axi_awaddr = {aw, {LANES{1'b0}}};
    assign m_axi_arlen = 8'(ar_beats - 1);
    assign m_axi_awlen = 8'(aw_beats - 1);
    assign {m_axi_arvalid, m_axi_awvalid} = {ar_left != 0, aw_left != 0};
    assign m_axi_bready = 1;
    // Data goes straight through, with the streams' own back-pressure.
    assign {m_axis_tdata, m_axis_tvalid, m_axi_rready} = {m_axi_rdata, m_axi_rvalid, m_axis_tready};
    assign {m_axi_wdata, m_axi_wvalid} = {s_axis_tdata, s_axis_tvalid && w_left != 0};
    assign s_axis_tready = m_axi_wready && w_left != 0;
    assign m_axi_wlast = w_left == 1 || w == 15;
    assign done = active && {ar_left, aw_left, w_left, answers} == '0;

    always_ff @(posedge clk) begin
        if (start) begin
            {ar, aw, w} <= {source[63:LANES], destination[63:LANES], destination[LANES +: 4]};
            {ar_left, aw_left, w_left} <= {3{count}};
            {active, failed} <= 2'b10;
        end
        if (done) active <= 0;
        if (m_axi_arvalid && m_axi_arready)
            {ar, ar_left} <= {ar + (64-LANES)'(ar_beats), ar_left - ar_beats};
        if (m_axi_awvalid && m_axi_awready)
            {aw, aw_left} <= {aw + (64-LANES)'(aw_beats), aw_left - aw_beats};
        if (m_axi_wvalid && m_axi_wready) {w, w_left} <= {w + 4'd1, w_left - 16'd1};
        answers <= answers + 16'(m_axi_awvalid && m_axi_awready) - 16'(m_axi_bvalid);
        if (m_axi_rvalid && m_axi_rresp[1] || m_axi_bvalid && m_axi_bresp[1]) failed <= 1;
        if (!rst_n) {ar_left, aw_left, w_left, answers, active, failed} <= '0;
    end
endmodule
