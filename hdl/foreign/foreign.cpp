// The harness on a stack of its own: see foreign.h.
#include <cerrno>

#define main harness_main
#include "harness.cpp"
#undef main

#include <ucontext.h>

#include "simulator.h"

namespace viaduct {

static ucontext_t harness, simulator;
static bool has_begun, is_over;

static void begin()
{
    static char name[] = "simulation", *words[] = {name, nullptr};
    if (harness_main(1, words))
        std::exit(1);
    is_over = true;
    swapcontext(&harness, &simulator);
}

void yield() { swapcontext(&harness, &simulator); }

bool resume()
{
    if (!has_begun) {
        has_begun = true;
        const size_t size = 1 << 20;
        getcontext(&harness);
        harness.uc_stack.ss_sp = std::malloc(size);
        harness.uc_stack.ss_size = size;
        makecontext(&harness, begin, 0);
    }
    if (!is_over)
        swapcontext(&simulator, &harness);
    return !is_over;
}

} // namespace viaduct

void Vcard::attach() { viaduct::ports = this; }
