// The waveform, if there is one: a cycle is 4 ns.
#pragma once
#include "Vcard.h"
#include "settings.h"
#if WAVE_FST
#include "verilated_fst_c.h"
#elif WAVE_VCD
#include "verilated_vcd_c.h"
#endif

namespace viaduct {

// Has to know of waveforms before there is a design.
struct Context : VerilatedContext {
    Context() { traceEverOn(WAVE_FST || WAVE_VCD); }
};

#if WAVE_FST || WAVE_VCD

class Wave {
public:
    explicit Wave(Vcard &top)
    {
        top.trace(&file, 99);
        file.open(WAVE_FILE);
    }

    // `half` counts halves of cycles.
    void dump(uint64_t half) { file.dump(half * 2000); }
    void close() { file.close(); }

private:
#if WAVE_FST
    VerilatedFstC file;
#else
    VerilatedVcdC file;
#endif
};

#else

class Wave {
public:
    explicit Wave(Vcard &) {}
    void dump(uint64_t) {}
    void close() {}
};

#endif

} // namespace viaduct
