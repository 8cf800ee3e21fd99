-- Four LEDs for VPCIe's entity in its first form, where a request lasts one clock and nobody
-- acknowledges it. Works with VHDL-93 too.
--
--   0 LEDS  read, write   4 CLOCKS  read: clocks since the reset   8 ALARM  a write interrupts
--
-- viaduct: id=2a2a:1ed5 bar0=16
library ieee;
use ieee.std_logic_1164.all;
use ieee.numeric_std.all;
library work;
use work.pcie;

entity leds is
end entity leds;

architecture behaviour of leds is
    signal rst, clk : std_ulogic;
    signal req_en, req_wr, rep_en, msi_en : std_ulogic;
    signal req_bar : std_ulogic_vector(pcie.BAR_WIDTH - 1 downto 0);
    signal req_addr : std_ulogic_vector(pcie.ADDR_WIDTH - 1 downto 0);
    signal req_data, rep_data : std_ulogic_vector(pcie.DATA_WIDTH - 1 downto 0);
    signal lit : std_ulogic_vector(3 downto 0);
    signal clocks : unsigned(31 downto 0);
begin

    rst_clk : pcie.clock port map (rst => rst, clk => clk);

    endpoint : pcie.endpoint port map (
        rst => rst, clk => clk,
        req_en => req_en, req_wr => req_wr,
        req_bar => req_bar, req_addr => req_addr, req_data => req_data,
        rep_en => rep_en, rep_data => rep_data,
        mwr_en => '0', mwr_addr => (others => '0'), mwr_data => (others => '0'),
        mwr_size => (others => '0'),
        msi_en => msi_en);

    process (rst, clk)
    begin
        if rst = '1' then
            lit <= "0000";
            clocks <= (others => '0');
            rep_en <= '0';
            msi_en <= '0';
        elsif rising_edge(clk) then
            clocks <= clocks + 1;
            rep_en <= req_en and not req_wr;
            msi_en <= '0';
            rep_data <= (others => '0');
            case req_addr(3 downto 2) is
                when "00" => rep_data(3 downto 0) <= lit;
                when "01" => rep_data(31 downto 0) <= std_ulogic_vector(clocks);
                when others => null;
            end case;
            if req_en = '1' and req_wr = '1' and req_addr(3 downto 2) = "00" then
                lit <= req_data(3 downto 0);
                report "leds " & integer'image(to_integer(unsigned(req_data(3 downto 0))));
            elsif req_en = '1' and req_wr = '1' and req_addr(3 downto 2) = "10" then
                msi_en <= '1';
            end if;
        end if;
    end process;

end architecture behaviour;
