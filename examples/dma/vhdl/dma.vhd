-- A DMA engine with the registers of examples/dma/README.md: AXI4-Lite registers, an AXI4 master of
-- WIDTH bits, and a line that is up while an interrupt is pending.
-- viaduct: id=1234:0da7 bar0=4K intx=on msi=1 msix=1
library ieee;
use ieee.std_logic_1164.all;
use ieee.numeric_std.all;

entity dma is
    generic (WIDTH : natural := 256);
    port (
        clk, rst_n : in std_logic;
        irq : out std_logic;
        s_axil_awaddr, s_axil_araddr : in std_logic_vector(11 downto 0);
        s_axil_wdata : in std_logic_vector(31 downto 0);
        s_axil_wstrb : in std_logic_vector(3 downto 0);
        s_axil_awvalid, s_axil_wvalid, s_axil_bready, s_axil_arvalid, s_axil_rready : in std_logic;
        s_axil_awready, s_axil_wready, s_axil_bvalid, s_axil_arready, s_axil_rvalid : out std_logic;
        s_axil_rdata : out std_logic_vector(31 downto 0);
        s_axil_bresp, s_axil_rresp : out std_logic_vector(1 downto 0);
        m_axi_araddr, m_axi_awaddr : out std_logic_vector(63 downto 0);
        m_axi_arlen, m_axi_awlen : out std_logic_vector(7 downto 0);
        m_axi_arvalid, m_axi_awvalid, m_axi_wvalid, m_axi_wlast : out std_logic;
        m_axi_rready, m_axi_bready : out std_logic;
        m_axi_arready, m_axi_awready, m_axi_wready, m_axi_rvalid, m_axi_bvalid : in std_logic;
        m_axi_rdata : in std_logic_vector(WIDTH - 1 downto 0);
        m_axi_wdata : out std_logic_vector(WIDTH - 1 downto 0);
        m_axi_wstrb : out std_logic_vector(WIDTH / 8 - 1 downto 0);
        m_axi_rresp, m_axi_bresp : in std_logic_vector(1 downto 0));
end entity dma;

architecture rtl of dma is
    constant BYTES : natural := WIDTH / 8;
    function log2(n : natural) return natural is
    begin
        for bits in 0 to 30 loop
            if 2 ** bits >= n then
                return bits;
            end if;
        end loop;
        return 31;
    end function log2;
    constant LANES : natural := log2(BYTES);
    subtype word_t is std_logic_vector(WIDTH - 1 downto 0);
    subtype place_t is unsigned(63 - LANES downto 0);     -- an address in words
    subtype amount_t is unsigned(20 downto 0);
    type words_t is array (0 to 63) of word_t;
    type regs_t is array (0 to 15) of std_logic_vector(31 downto 0);
    constant LONGEST : unsigned(31 downto 0) := x"00100000";
    constant ZERO : amount_t := (others => '0');

    function bit_of(b : boolean) return std_logic is
    begin
        if b then return '1'; else return '0'; end if;
    end function bit_of;
    -- Bursts end where an address is a multiple of 16 words, so none crosses 4 KiB.
    function beats(left : amount_t; place : place_t) return amount_t is
        variable room : amount_t;
    begin
        room := to_unsigned(16, 21) - resize(place(3 downto 0), 21);
        if left < room then return left; else return room; end if;
    end function beats;
    function words(lane : unsigned; len : unsigned) return amount_t is
    begin
        return resize(shift_right(resize(lane, 32) + len + (BYTES - 1), LANES), 21);
    end function words;

    signal regs : regs_t := (others => (others => '0'));
    signal count : unsigned(31 downto 0) := (others => '0');
    signal busy, done, failed, pending, bad, primed, first : std_logic := '0';
    signal store : words_t := (others => (others => '0'));
    signal last, following : word_t := (others => '0');
    signal filled, emptied, promised : unsigned(6 downto 0) := (others => '0');
    signal ar, aw, w : place_t := (others => '0');
    signal ar_left, aw_left, in_left, w_left, answers : amount_t := (others => '0');
    signal ar_beats, aw_beats : amount_t;
    signal source, destination : unsigned(63 downto 0);
    signal len : unsigned(31 downto 0);
    signal s, d, shift, tail : unsigned(LANES - 1 downto 0);
    signal take, start, finished, is_there, prime, step : std_logic;
begin
    source <= unsigned(regs(3)) & unsigned(regs(2));
    destination <= unsigned(regs(5)) & unsigned(regs(4));
    len <= unsigned(regs(6));
    take <= s_axil_awvalid and s_axil_wvalid and (not s_axil_bvalid or s_axil_bready);
    start <= bit_of(take = '1' and busy = '0' and unsigned(s_axil_awaddr(11 downto 2)) = 7
                    and s_axil_wdata(7 downto 0) = x"01");
    s_axil_awready <= take;
    s_axil_wready <= take;
    s_axil_arready <= not s_axil_rvalid or s_axil_rready;
    s_axil_bresp <= "00";
    s_axil_rresp <= "00";
    irq <= pending;

    registers : process (clk)
        variable to_reg, from_reg : natural range 0 to 1023;
    begin
        if rising_edge(clk) then
            to_reg := to_integer(unsigned(s_axil_awaddr(11 downto 2)));
            from_reg := to_integer(unsigned(s_axil_araddr(11 downto 2)));
            if s_axil_bready = '1' then
                s_axil_bvalid <= '0';
            end if;
            if take = '1' then
                s_axil_bvalid <= '1';
                if (to_reg >= 2 and to_reg <= 6) or (to_reg >= 12 and to_reg <= 15) then
                    for n in 0 to 3 loop
                        if s_axil_wstrb(n) = '1' then
                            regs(to_reg mod 16)(8 * n + 7 downto 8 * n) <=
                                s_axil_wdata(8 * n + 7 downto 8 * n);
                        end if;
                    end loop;
                elsif to_reg = 9 then
                    pending <= '0';
                end if;
            end if;
            if s_axil_rready = '1' then
                s_axil_rvalid <= '0';
            end if;
            if s_axil_arvalid = '1' and s_axil_arready = '1' then
                s_axil_rvalid <= '1';
                s_axil_rdata <= (others => '0');
                case from_reg is
                    when 0 => s_axil_rdata <= x"414d4456";
                    when 8 => s_axil_rdata(2 downto 0) <= failed & done & busy;
                    when 9 => s_axil_rdata(0) <= pending;
                    when 10 => s_axil_rdata <= std_logic_vector(count);
                    when 2 to 6 | 12 to 15 => s_axil_rdata <= regs(from_reg mod 16);
                    when others => null;
                end case;
            end if;
            if start = '1' then
                (busy, done, failed) <= std_logic_vector'("100");
            end if;
            if finished = '1' then
                (busy, done, failed, pending) <= std_logic_vector'('0', '1', bad, '1');
                count <= count + 1;
            end if;
            if rst_n = '0' then
                (s_axil_bvalid, s_axil_rvalid, busy, done) <= std_logic_vector'("0000");
                (failed, pending) <= std_logic_vector'("00");
                count <= (others => '0');
                regs <= (others => (others => '0'));
            end if;
        end if;
    end process registers;

    -- The copy: words of the source through a buffer, shifted into those of the target.
    s <= source(LANES - 1 downto 0);
    d <= destination(LANES - 1 downto 0);
    shift <= s - d;
    tail <= d + len(LANES - 1 downto 0);
    ar_beats <= beats(ar_left, ar);
    aw_beats <= beats(aw_left, aw);
    following <= store(to_integer(emptied(5 downto 0)));
    is_there <= bit_of(in_left = 0 or filled /= emptied);
    prime <= busy and not primed and is_there;
    step <= bit_of(busy = '1' and primed = '1' and w_left /= 0 and is_there = '1'
                   and (m_axi_wvalid = '0' or m_axi_wready = '1'));
    m_axi_araddr <= std_logic_vector(ar) & (LANES - 1 downto 0 => '0');
    m_axi_awaddr <= std_logic_vector(aw) & (LANES - 1 downto 0 => '0');
    m_axi_arlen <= std_logic_vector(resize(ar_beats - 1, 8));
    m_axi_awlen <= std_logic_vector(resize(aw_beats - 1, 8));
    m_axi_rready <= '1';
    m_axi_bready <= '1';
    m_axi_arvalid <= bit_of(ar_left /= 0 and promised - emptied <= 48);
    m_axi_awvalid <= bit_of(aw_left /= 0);
    finished <= bit_of(busy = '1' and start = '0' and (ar_left or aw_left or w_left or answers) = ZERO
                       and m_axi_wvalid = '0' and filled = promised);

    copy : process (clk)
        variable strobe : unsigned(BYTES - 1 downto 0);
        variable change : amount_t;
        constant ONES : unsigned(BYTES - 1 downto 0) := (others => '1');
    begin
        if rising_edge(clk) then
            if m_axi_arvalid = '1' and m_axi_arready = '1' then
                ar <= ar + ar_beats;
                ar_left <= ar_left - ar_beats;
                promised <= promised + resize(ar_beats, 7);
            end if;
            if m_axi_rvalid = '1' then
                store(to_integer(filled(5 downto 0))) <= m_axi_rdata;
                filled <= filled + 1;
            end if;
            if prime = '1' then
                primed <= '1';
            end if;
            if prime = '1' or step = '1' then
                last <= following;
                if in_left /= 0 then
                    in_left <= in_left - 1;
                    emptied <= emptied + 1;
                end if;
            end if;
            if m_axi_wready = '1' then
                m_axi_wvalid <= '0';
            end if;
            if step = '1' then
                strobe := ONES;
                if first = '1' then
                    strobe := shift_left(ONES, to_integer(d));
                end if;
                if w_left = 1 and tail /= 0 then
                    strobe := strobe and not shift_left(ONES, to_integer(tail));
                end if;
                if bad = '1' then
                    strobe := not ONES;
                end if;
                m_axi_wvalid <= '1';
                m_axi_wdata <= std_logic_vector(resize(shift_right(
                    unsigned(std_logic_vector'(following & last)), 8 * to_integer(shift)), WIDTH));
                m_axi_wstrb <= std_logic_vector(strobe);
                m_axi_wlast <= bit_of(w_left = 1 or w(3 downto 0) = 15);
                w <= w + 1;
                w_left <= w_left - 1;
                first <= '0';
            end if;
            change := ZERO;
            if m_axi_awvalid = '1' and m_axi_awready = '1' then
                aw <= aw + aw_beats;
                aw_left <= aw_left - aw_beats;
                change := change + 1;
            end if;
            if m_axi_bvalid = '1' then
                change := change - 1;
            end if;
            answers <= answers + change;
            if (m_axi_rvalid and m_axi_rresp(1)) = '1' or (m_axi_bvalid and m_axi_bresp(1)) = '1' then
                bad <= '1';
            end if;
            if start = '1' then
                ar <= source(63 downto LANES);
                aw <= destination(63 downto LANES);
                w <= destination(63 downto LANES);
                (filled, emptied, promised) <= unsigned'(21 downto 1 => '0');
                answers <= ZERO;
                first <= '1';
                -- Else the first word has to be there before anything can be written.
                primed <= bit_of(s < d);
                bad <= bit_of(len > LONGEST);
                if len /= 0 and len <= LONGEST then
                    ar_left <= words(s, len);
                    in_left <= words(s, len);
                    aw_left <= words(d, len);
                    w_left <= words(d, len);
                end if;
            end if;
            if rst_n = '0' then
                (ar_left, aw_left, w_left, in_left) <= unsigned'(83 downto 0 => '0');
                (filled, promised) <= unsigned'(13 downto 0 => '0');
                answers <= ZERO;
                m_axi_wvalid <= '0';
            end if;
        end if;
    end process copy;
end architecture rtl;
