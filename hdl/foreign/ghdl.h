// The simulator is GHDL: what VHDL calls. Bits come as arrays of bytes, the left one first, all
// ports behind each other.
#pragma once
#include "foreign.h"

namespace viaduct {

static Vcard__Syms *ports;
// 'U', 'X', '0', '1', 'Z', 'W', 'L', 'H', '-'.
enum { LOW = 2, HIGH = 3, WEAK_HIGH = 7 };
// What the harness has said lately.
static Vcard__Syms shown;

static uint8_t *place(Vcard__Syms *all, const Port &port)
{
    return reinterpret_cast<uint8_t *>(all) + port.offset;
}

extern "C" void viaduct_foreign_outputs(const uint8_t *bits)
{
    if (!ports)
        return;
    for (const Port &port : PORTS) {
        if (port.is_input)
            continue;
        uint8_t *at = place(ports, port);
        std::memset(at, 0, (port.bits + 7) / 8);
        for (unsigned n = port.bits; n-- > 0; bits++)
            at[n / 8] |= uint8_t((*bits == HIGH || *bits == WEAK_HIGH) << n % 8);
    }
}

extern "C" void viaduct_foreign_inputs(uint8_t *bits)
{
    for (const Port &port : PORTS) {
        if (!port.is_input || port.is_clock)
            continue;
        const uint8_t *at = place(ports, port);
        for (unsigned n = port.bits; n-- > 0;)
            *bits++ = at[n / 8] >> n % 8 & 1 ? HIGH : LOW;
    }
}

// Bit 0: the clock; bit 1: other inputs have changed; 4: it is over.
extern "C" int32_t viaduct_foreign_step()
{
    if (!resume())
        return 4;
    int32_t what = 0;
    for (const Port &port : PORTS) {
        uint8_t *now = place(ports, port), *old = place(&shown, port);
        if (port.is_clock)
            what |= *now & 1;
        else if (port.is_input && std::memcmp(now, old, (port.bits + 7) / 8))
            what |= 2;
    }
    shown = *ports;
    return what;
}

// What a design reports is seen when it is reported. Too late once something was.
__attribute__((constructor)) static void by_lines() { setvbuf(stdout, nullptr, _IOLBF, 0); }

} // namespace viaduct
