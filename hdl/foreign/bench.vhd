-- What stands around a design in GHDL: its ports as two long vectors, which go to the harness and
-- come from it in each half of a cycle.
library ieee;
use ieee.std_logic_1164.all;

package viaduct_foreign is

    subtype input_bits is std_logic_vector(0 to @INPUTS@);
    subtype output_bits is std_logic_vector(0 to @OUTPUTS@);

    procedure put_outputs(bits : in output_bits);
    attribute foreign of put_outputs : procedure is "VHPIDIRECT @LIBRARY@viaduct_foreign_outputs";

    procedure get_inputs(bits : out input_bits);
    attribute foreign of get_inputs : procedure is "VHPIDIRECT @LIBRARY@viaduct_foreign_inputs";

    -- 1: the clock is high; 2: other inputs have changed; 4: it is over.
    function step return integer;
    attribute foreign of step : function is "VHPIDIRECT @LIBRARY@viaduct_foreign_step";

end package viaduct_foreign;

package body viaduct_foreign is

    procedure put_outputs(bits : in output_bits) is
    begin
        assert false report "libviaduct is not there" severity failure;
    end procedure put_outputs;

    procedure get_inputs(bits : out input_bits) is
    begin
        assert false report "libviaduct is not there" severity failure;
    end procedure get_inputs;

    function step return integer is
    begin
        assert false report "libviaduct is not there" severity failure;
        return 4;
    end function step;

end package body viaduct_foreign;

library ieee;
use ieee.std_logic_1164.all;
use ieee.numeric_std.all;
use work.viaduct_foreign.all;

entity viaduct_bench is
end entity viaduct_bench;

architecture harness of viaduct_bench is
    signal clock : std_logic := '0';
    signal inputs : input_bits := (others => '0');
    signal outputs : output_bits;
begin

    card : entity work.@TOP@ @GENERICS@ port map (
        @PORTS@);

    process
        variable what : integer;
        variable bits : input_bits;
    begin
        put_outputs(outputs);
        what := step;
        if what >= 4 then
            @FINISH@
        end if;
        if what >= 2 then
            get_inputs(bits);
            inputs <= bits;
        end if;
        if what mod 2 = 1 then
            clock <= '1';
        else
            clock <= '0';
        end if;
        wait for 2 ns;
    end process;

end architecture harness;
