-- The package by which a design in VHDL is a PCIe card, with the names and widths of VPCIe's. A
-- design that was written for VPCIe is analysed after this file and finds what it refers to, as
-- work.pcie and as pcie.X.
--
-- A test bench of the design's own makes clk and rst, or takes them from clock below, which a
-- function level reset reaches.
library ieee;
use ieee.std_logic_1164.all;

package pcie is

    constant ADDR_WIDTH : natural := 64;
    constant DATA_WIDTH : natural := 64;
    constant SIZE_WIDTH : natural := 16;
    constant BAR_WIDTH : natural := 3;
    constant PAYLOAD_WIDTH : natural := 1024;

    component endpoint is
        generic (
            -- A request lasts one clock, whatever req_ack says.
            REQ_STROBE : boolean := false
        );
        port (
            rst : in std_ulogic;
            clk : in std_ulogic;
            -- A driver's access of BAR req_bar, held until a rising edge finds req_ack. With req_ack
            -- left open it lasts one clock. req_data is right-aligned, with zeros before it.
            req_en : out std_ulogic;
            req_ack : in std_ulogic := '1';
            req_wr : out std_ulogic;
            req_bar : out std_ulogic_vector(BAR_WIDTH - 1 downto 0);
            req_addr : out std_ulogic_vector(ADDR_WIDTH - 1 downto 0);
            req_data : out std_ulogic_vector(DATA_WIDTH - 1 downto 0);
            -- One clock answers the read that is waited for.
            rep_en : in std_ulogic;
            rep_data : in std_ulogic_vector(DATA_WIDTH - 1 downto 0);
            -- One clock writes mwr_size bytes of host memory; byte i is mwr_data(8i+7 downto 8i).
            mwr_en : in std_ulogic;
            mwr_addr : in std_ulogic_vector(ADDR_WIDTH - 1 downto 0);
            mwr_data : in std_ulogic_vector(PAYLOAD_WIDTH - 1 downto 0);
            mwr_size : in std_ulogic_vector(SIZE_WIDTH - 1 downto 0);
            -- One clock sends MSI vector 0, after a write of the same clock and before an answer.
            msi_en : in std_ulogic
        );
    end component endpoint;

    -- Reset for four clocks, at the beginning and whenever the driver resets the function.
    component clock is
        generic (
            PERIOD : time := 10 ns
        );
        port (
            rst : out std_ulogic;
            clk : out std_ulogic
        );
    end component clock;

    subtype bar_bits is std_ulogic_vector(BAR_WIDTH - 1 downto 0);
    subtype address_bits is std_ulogic_vector(ADDR_WIDTH - 1 downto 0);
    subtype data_bits is std_ulogic_vector(DATA_WIDTH - 1 downto 0);
    subtype size_bits is std_ulogic_vector(SIZE_WIDTH - 1 downto 0);
    subtype payload_bits is std_ulogic_vector(PAYLOAD_WIDTH - 1 downto 0);

    -- What the other side, endpoint.c, does. Bits go as arrays of bytes, the left one first.

    -- 0: nothing is asked, or has to wait. 1: a read, 2: a write; the three are set. 3: it is over.
    function glue_poll(is_held : integer) return integer;
    attribute foreign of glue_poll : function is "VHPIDIRECT @LIBRARY@viaduct_endpoint_poll";

    procedure glue_request(bar : out bar_bits; addr : out address_bits; data : out data_bits);
    attribute foreign of glue_request :
        procedure is "VHPIDIRECT @LIBRARY@viaduct_endpoint_request";

    procedure glue_reply(data : in data_bits);
    attribute foreign of glue_reply : procedure is "VHPIDIRECT @LIBRARY@viaduct_endpoint_reply";

    procedure glue_write(addr : in address_bits; data : in payload_bits; size : in size_bits);
    attribute foreign of glue_write : procedure is "VHPIDIRECT @LIBRARY@viaduct_endpoint_write";

    procedure glue_msi;
    attribute foreign of glue_msi : procedure is "VHPIDIRECT @LIBRARY@viaduct_endpoint_msi";

    -- 1: requests last one clock by the environment's word.
    function glue_strobe return integer;
    attribute foreign of glue_strobe : function is "VHPIDIRECT @LIBRARY@viaduct_endpoint_strobe";

    -- How many resets there have been.
    function glue_resets return integer;
    attribute foreign of glue_resets : function is "VHPIDIRECT @LIBRARY@viaduct_endpoint_resets";

end package pcie;

-- Bodies that VHDL wants and nobody runs.
package body pcie is

    function glue_poll(is_held : integer) return integer is
    begin
        assert false report "libviaduct is not there" severity failure;
        return 3;
    end function glue_poll;

    procedure glue_request(bar : out bar_bits; addr : out address_bits; data : out data_bits) is
    begin
        assert false report "libviaduct is not there" severity failure;
    end procedure glue_request;

    procedure glue_reply(data : in data_bits) is
    begin
        assert false report "libviaduct is not there" severity failure;
    end procedure glue_reply;

    procedure glue_write(addr : in address_bits; data : in payload_bits; size : in size_bits) is
    begin
        assert false report "libviaduct is not there" severity failure;
    end procedure glue_write;

    procedure glue_msi is
    begin
        assert false report "libviaduct is not there" severity failure;
    end procedure glue_msi;

    function glue_strobe return integer is
    begin
        assert false report "libviaduct is not there" severity failure;
        return 0;
    end function glue_strobe;

    function glue_resets return integer is
    begin
        assert false report "libviaduct is not there" severity failure;
        return 0;
    end function glue_resets;

end package body pcie;
