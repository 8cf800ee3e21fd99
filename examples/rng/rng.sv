// The data path of a virtio entropy source: a stream of words, and nothing else. What a driver sees
// of virtio is done by the simulation's side. A real one would have a source of noise here instead
// of a shift register (Marsaglia's xorshift64, two steps a cycle).
// viaduct: virtio=rng
module rng (
    input  logic clk, rst_n,
    output logic [63:0] m_axis_tdata,
    output logic m_axis_tvalid,
    input  logic m_axis_tready
);
    function automatic logic [63:0] step(input logic [63:0] x);
        x ^= x << 13;
        x ^= x >> 7;
        return x ^ x << 17;
    endfunction

    always_ff @(posedge clk) begin
        m_axis_tvalid <= rst_n;
        if (!rst_n) m_axis_tdata <= 64'h9e3779b97f4a7c15;
        else if (m_axis_tvalid && m_axis_tready) m_axis_tdata <= step(step(m_axis_tdata));
    end
endmodule
