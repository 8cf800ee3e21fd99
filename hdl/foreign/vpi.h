// The simulator speaks the Verilog procedural interface (IEEE 1364-2005, 26 and 27): Icarus. A
// callback in each half of a cycle, 2 ns after the other, when all has settled.
#pragma once
#include <vpi_user.h>

#include "foreign.h"

namespace viaduct {

static Vcard__Syms *ports;
static Vcard__Syms shown;
static bool has_shown;
static vpiHandle handles[sizeof PORTS / sizeof PORTS[0]];
static const unsigned WORDS = 64;

static uint8_t *place(Vcard__Syms *all, const Port &port)
{
    return reinterpret_cast<uint8_t *>(all) + port.offset;
}

static void bring_outputs()
{
    unsigned index = 0;
    for (const Port &port : PORTS) {
        vpiHandle handle = handles[index++];
        if (port.is_input)
            continue;
        s_vpi_value value;
        value.format = vpiVectorVal;
        vpi_get_value(handle, &value);
        unsigned left = (port.bits + 7) / 8;
        uint8_t *at = place(ports, port);
        for (unsigned word = 0; left > 0; word++) {
            // What is unknown is 0.
            const s_vpi_vecval &both = value.value.vector[word];
            uint32_t bits = uint32_t(both.aval & ~both.bval);
            unsigned len = left < 4 ? left : 4;
            std::memcpy(at + 4 * word, &bits, len);
            left -= len;
        }
    }
}

static void take_inputs()
{
    unsigned index = 0;
    for (const Port &port : PORTS) {
        vpiHandle handle = handles[index++];
        unsigned len = (port.bits + 7) / 8;
        uint8_t *now = place(ports, port), *old = place(&shown, port);
        if (!port.is_input || (has_shown && !std::memcmp(now, old, len)))
            continue;
        s_vpi_vecval words[WORDS] = {};
        for (unsigned word = 0; 4 * word < len; word++)
            std::memcpy(&words[word].aval, now + 4 * word, len - 4 * word < 4 ? len - 4 * word : 4);
        s_vpi_value value;
        value.format = vpiVectorVal;
        value.value.vector = words;
        vpi_put_value(handle, &value, nullptr, vpiNoDelay);
    }
    has_shown = true;
    shown = *ports;
}

static PLI_INT32 turn(p_cb_data);

// 2 ns in units of the simulation, or one unit if that is longer.
static uint32_t half_cycle()
{
    uint32_t units = 2;
    for (int n = vpi_get(vpiTimePrecision, nullptr); n < -9 && units < 1000000000; n++)
        units *= 10;
    return vpi_get(vpiTimePrecision, nullptr) > -9 ? 1 : units;
}

static void call_later()
{
    static s_vpi_time delay;
    static const uint32_t half = half_cycle();
    s_cb_data callback = {};
    delay.type = vpiSimTime;
    delay.low = half;
    callback.reason = cbAfterDelay;
    callback.cb_rtn = turn;
    callback.time = &delay;
    vpi_free_object(vpi_register_cb(&callback));
}

static PLI_INT32 turn(p_cb_data)
{
    if (ports)
        bring_outputs();
    if (!resume()) {
        vpi_control(vpiFinish, 0);
        return 0;
    }
    take_inputs();
    call_later();
    return 0;
}

static PLI_INT32 begin_simulation(p_cb_data)
{
    unsigned index = 0;
    for (const Port &port : PORTS) {
        char name[256];
        snprintf(name, sizeof name, TOP ".%s", port.name);
        handles[index] = vpi_handle_by_name(name, nullptr);
        if (!handles[index++]) {
            vpi_printf(const_cast<char *>("no port %s\n"), name);
            vpi_control(vpiFinish, 1);
            return 0;
        }
    }
    call_later();
    return 0;
}

static void register_callbacks()
{
    s_cb_data callback = {};
    callback.reason = cbStartOfSimulation;
    callback.cb_rtn = begin_simulation;
    vpi_free_object(vpi_register_cb(&callback));
}

} // namespace viaduct

extern "C" void (*vlog_startup_routines[])() = {viaduct::register_callbacks, nullptr};
