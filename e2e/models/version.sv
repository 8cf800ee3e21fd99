// Word 0 is the version, word 1 whatever was written there.
// viaduct: id=1234:0e01 bar0=4K
module version (
    input  logic aclk, aresetn,
    input  logic [11:0] s_axi_awaddr, s_axi_araddr,
    input  logic [31:0] s_axi_wdata,
    input  logic [3:0] s_axi_wstrb,
    input  logic s_axi_awvalid, s_axi_wvalid, s_axi_bready, s_axi_arvalid, s_axi_rready,
    output logic s_axi_awready, s_axi_wready, s_axi_bvalid, s_axi_arready, s_axi_rvalid,
    output logic [31:0] s_axi_rdata
);
    logic [31:0] word;
    wire take = s_axi_awvalid && s_axi_wvalid && !s_axi_bvalid;
    assign {s_axi_awready, s_axi_wready, s_axi_arready} = {take, take, !s_axi_rvalid};
    always_ff @(posedge aclk) begin
        if (s_axi_bready) s_axi_bvalid <= 0;
        if (take) s_axi_bvalid <= 1;
        for (int n = 0; n < 4; n++)
            if (take && s_axi_awaddr[11:2] == 1 && s_axi_wstrb[n])
                word[8*n +: 8] <= s_axi_wdata[8*n +: 8];
        if (s_axi_rready) s_axi_rvalid <= 0;
        if (s_axi_arvalid && s_axi_arready) begin
            s_axi_rvalid <= 1;
            s_axi_rdata <= s_axi_araddr[11:2] == 0 ? 32'd1 : s_axi_araddr[11:2] == 1 ? word : 0;
        end
        if (!aresetn) {s_axi_bvalid, s_axi_rvalid, word} <= 0;
    end
endmodule
