-- The two entities of package pcie. Requests, answers, writes and interrupts go to endpoint.c, which
-- stands still inside glue_poll while nothing happens: then the clock stands still too.
library ieee;
use ieee.std_logic_1164.all;
library work;
use work.pcie;

entity endpoint is
    generic (
        REQ_STROBE : boolean := false
    );
    port (
        rst : in std_ulogic;
        clk : in std_ulogic;
        req_en : out std_ulogic;
        req_ack : in std_ulogic := '1';
        req_wr : out std_ulogic;
        req_bar : out std_ulogic_vector(pcie.BAR_WIDTH - 1 downto 0);
        req_addr : out std_ulogic_vector(pcie.ADDR_WIDTH - 1 downto 0);
        req_data : out std_ulogic_vector(pcie.DATA_WIDTH - 1 downto 0);
        rep_en : in std_ulogic;
        rep_data : in std_ulogic_vector(pcie.DATA_WIDTH - 1 downto 0);
        mwr_en : in std_ulogic;
        mwr_addr : in std_ulogic_vector(pcie.ADDR_WIDTH - 1 downto 0);
        mwr_data : in std_ulogic_vector(pcie.PAYLOAD_WIDTH - 1 downto 0);
        mwr_size : in std_ulogic_vector(pcie.SIZE_WIDTH - 1 downto 0);
        msi_en : in std_ulogic
    );
end entity endpoint;

architecture foreign_side of endpoint is
begin

    process (rst, clk)
        variable is_strobe, is_held : boolean := false;
        variable held : integer;
        variable what : integer;
        variable bar : pcie.bar_bits;
        variable addr : pcie.address_bits;
        variable data : pcie.data_bits;
    begin
        if rst = '1' then
            is_strobe := REQ_STROBE or pcie.glue_strobe = 1;
            is_held := false;
            req_en <= '0';
            req_wr <= '0';
            req_bar <= (others => '0');
            req_addr <= (others => '0');
            req_data <= (others => '0');
        elsif rising_edge(clk) then
            -- Data before the interrupt that tells of it, and both before the answer of a read that
            -- may find out about it, as producer and consumer on a bus have it.
            if mwr_en = '1' then
                pcie.glue_write(mwr_addr, mwr_data, mwr_size);
            end if;
            if msi_en = '1' then
                pcie.glue_msi;
            end if;
            if rep_en = '1' then
                pcie.glue_reply(rep_data);
            end if;

            if is_held and (is_strobe or req_ack = '1') then
                is_held := false;
                req_en <= '0';
                req_wr <= '0';
                req_bar <= (others => '0');
                req_addr <= (others => '0');
            end if;
            held := 0;
            if is_held then
                held := 1;
            end if;
            what := pcie.glue_poll(held);
            if what = 3 then
                @FINISH@
            elsif what /= 0 then
                pcie.glue_request(bar, addr, data);
                is_held := true;
                req_en <= '1';
                req_bar <= bar;
                req_addr <= addr;
                -- A read leaves the data of the last write standing.
                if what = 2 then
                    req_wr <= '1';
                    req_data <= data;
                end if;
            end if;
        end if;
    end process;

end architecture foreign_side;

library ieee;
use ieee.std_logic_1164.all;
library work;
use work.pcie;

entity clock is
    generic (
        PERIOD : time := 10 ns
    );
    port (
        rst : out std_ulogic;
        clk : out std_ulogic
    );
end entity clock;

architecture simulated of clock is
begin

    process
        variable seen : integer := -1;
        variable left : natural := 0;
    begin
        -- The number of resets changes in the endpoint's process, at a rising edge.
        if pcie.glue_resets /= seen then
            seen := pcie.glue_resets;
            left := 4;
        end if;
        clk <= '0';
        if left = 0 then
            rst <= '0';
        else
            rst <= '1';
            left := left - 1;
        end if;
        wait for PERIOD / 2;
        clk <= '1';
        wait for PERIOD / 2;
    end process;

end architecture simulated;
