-- A card for VPCIe's entity: the registers of pattern.c, but for the sum, since VPCIe has no reads of
-- host memory, and a row of LEDs.
--
--   0 CONTROL  write 1: writes a page of bytes that count up, then reads 2 and interrupts
--   4, 8 ADDRESS, low and high half   12 FIRST, the page's first byte   16 LEDS
--
-- viaduct: id=2a2a:2b2b bar0=256
library ieee;
use ieee.std_logic_1164.all;
use ieee.numeric_std.all;
library work;
use work.pcie;

entity pattern is
end entity pattern;

architecture behaviour of pattern is
    -- A page goes in pieces of half of what fits.
    constant PIECE : natural := 64;
    constant PIECES : natural := 4096 / PIECE;
    type registers_t is array (0 to 4) of unsigned(31 downto 0);
    signal rst, clk : std_ulogic;
    signal req_en, req_ack, req_wr : std_ulogic;
    signal req_bar : std_ulogic_vector(pcie.BAR_WIDTH - 1 downto 0);
    signal req_addr : std_ulogic_vector(pcie.ADDR_WIDTH - 1 downto 0);
    signal req_data : std_ulogic_vector(pcie.DATA_WIDTH - 1 downto 0);
    signal rep_en, mwr_en, msi_en : std_ulogic;
    signal rep_data : std_ulogic_vector(pcie.DATA_WIDTH - 1 downto 0);
    signal mwr_addr : std_ulogic_vector(pcie.ADDR_WIDTH - 1 downto 0);
    signal mwr_data : std_ulogic_vector(pcie.PAYLOAD_WIDTH - 1 downto 0);
    signal mwr_size : std_ulogic_vector(pcie.SIZE_WIDTH - 1 downto 0);
    signal registers : registers_t;
    signal left : natural range 0 to PIECES;
    signal leds : std_ulogic_vector(3 downto 0);
begin

    clocks : pcie.clock port map (rst => rst, clk => clk);

    endpoint : pcie.endpoint port map (
        rst => rst, clk => clk,
        req_en => req_en, req_ack => req_ack, req_wr => req_wr,
        req_bar => req_bar, req_addr => req_addr, req_data => req_data,
        rep_en => rep_en, rep_data => rep_data,
        mwr_en => mwr_en, mwr_addr => mwr_addr, mwr_data => mwr_data, mwr_size => mwr_size,
        msi_en => msi_en);

    process (rst, clk)
        variable index : natural range 0 to 63;
        variable at : natural range 0 to 4095;
    begin
        if rst = '1' then
            registers <= (others => (others => '0'));
            left <= 0;
            (req_ack, rep_en, mwr_en, msi_en) <= std_ulogic_vector'("0000");
        elsif rising_edge(clk) then
            rep_en <= '0';
            mwr_en <= '0';
            msi_en <= '0';
            req_ack <= '0';
            index := to_integer(unsigned(req_addr(7 downto 2)));
            if req_en = '1' and req_ack = '0' then
                req_ack <= '1';
                rep_en <= not req_wr;
                rep_data <= (others => '0');
                if index <= registers'high then
                    rep_data(31 downto 0) <= std_ulogic_vector(registers(index));
                    if req_wr = '1' then
                        registers(index) <= unsigned(req_data(31 downto 0));
                    end if;
                end if;
                if req_wr = '1' and index = 0 and req_data(0) = '1' then
                    left <= PIECES;
                end if;
            end if;

            -- From the end to the beginning, with rubbish behind what counts: a write that is longer
            -- than mwr_size would spoil the one before it.
            if left > 0 then
                left <= left - 1;
                at := (left - 1) * PIECE;
                mwr_en <= '1';
                mwr_addr <= std_ulogic_vector((registers(2) & registers(1)) + at);
                mwr_size <= std_ulogic_vector(to_unsigned(PIECE, mwr_size'length));
                mwr_data <= (others => '1');
                for n in 0 to PIECE - 1 loop
                    mwr_data(8 * n + 7 downto 8 * n) <=
                        std_ulogic_vector(registers(3)(7 downto 0) + ((at + n) mod 256));
                end loop;
                if left = 1 then
                    registers(0) <= to_unsigned(2, 32);
                    msi_en <= '1';
                end if;
            end if;
        end if;
    end process;

    leds <= std_ulogic_vector(registers(4)(3 downto 0));

    process (leds)
    begin
        if not is_x(leds) then
            report "leds " & integer'image(to_integer(unsigned(leds)));
        end if;
    end process;

end architecture behaviour;
