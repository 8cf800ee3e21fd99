// A design as a model behind a port: its clock, and the loop that serves both.
//
// A cycle has two halves. In the first, with the clock low, inputs are driven and outputs settle;
// what is true on both sides then is what happens at the rising edge, which is the second half.
//
//     clk      ________|~~~~~~~~|________|~~~~~~~~
//              drive    edge     drive    edge
//              settle            settle
//              sample            sample
//
// The clock stands still when nothing changes from one cycle to the next, which is found by
// comparing all of the design's state: then no later cycle could change anything either.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <deque>
#include <memory>
#include <sys/signalfd.h>
#include <unistd.h>

#include "Vcard.h"
#include "Vcard___024root.h"
#include "Vcard__Syms.h"
#include "access.h"
#include "card.h"
#include "link.h"
#include "pace.h"
#include "settings.h"
#include "wave.h"
#include "wires.h"

namespace viaduct {

class Simulation {
public:
    explicit Simulation(viaduct_device *dev)
        : dev(dev), top(&context), wiring(top, dev, pace, link), wave(top)
    {
        pace.latency = LATENCY;
        pace.stalls = STALLS;
        reset();
        cycles_at_start = pace.cycle;
    }

    ~Simulation()
    {
        top.final();
        wave.close();
    }

    // Serves until the port has gone, or `should_end`.
    int run()
    {
        int status = 0;
        // A driver may have set the card up already, for the simulation before this one.
        configure();
        while (!status && !should_end && !context.gotFinish())
            status = CLOCK == FREE ? run_free() : CLOCK == PACED ? run_paced() : run_locked();
        if (context.gotFinish())
            viaduct_log(dev, 1, "the design has called $finish");
        return status == -EPIPE ? 0 : status;
    }

    void push(Access &&access)
    {
        wake();
        if (CLOCK == LOCKED)
            waiting.push_back(std::move(access));
        else
            give(std::move(access));
    }

    void reset()
    {
        link.refresh(dev);
        for (Access &access : waiting)
            access.finish(false);
        waiting.clear();
        wiring.clear();
        wiring.set_reset(true);
        for (int n = 0; n < 16; n++)
            cycle();
        wiring.set_reset(false);
        cycle();
        granted = 0;
        wake();
    }

    // The driver has set something up.
    void configure()
    {
        link.refresh(dev);
        wake();
    }

    uint64_t cycles() const { return pace.cycle - cycles_at_start; }

    bool should_end = false;

private:
    void cycle()
    {
        pace.cycle++;
        wiring.drive();
        wiring.set_clock(0);
        top.eval();
        wave.dump(2 * pace.cycle);
        wiring.sample();
        wiring.set_clock(1);
        top.eval();
        wave.dump(2 * pace.cycle + 1);
    }

    // Cycles until a driver has its answer, or has more to say.
    void batch(unsigned most)
    {
        bool was_asked = wiring.has_accesses();
        for (unsigned n = 1; n <= most; n++) {
            cycle();
            if (was_asked && !wiring.has_accesses())
                return;
            if (n % 16 == 0 && viaduct_pending(dev))
                return;
        }
    }

    // Whether another cycle changes nothing. Costs a copy of the state.
    bool is_still()
    {
        if (wiring.is_busy())
            return false;
        const auto &state = *top.rootp->vlSymsp;
        if (!before)
            before = std::make_unique<uint8_t[]>(sizeof state);
        std::memcpy(before.get(), static_cast<const void *>(&state), sizeof state);
        cycle();
        return !wiring.is_busy() &&
               !std::memcmp(before.get(), static_cast<const void *>(&state), sizeof state);
    }

    int run_free()
    {
        int status = viaduct_process(dev, is_awake ? 0 : wait_ms);
        if (!is_awake && wait_ms < 0)
            return status;
        batch(spell);
        if (wiring.is_busy()) {
            wake();
        } else if (is_still()) {
            is_awake = false;
            wait_ms = -1;
        } else {
            quiet += spell;
            spell = std::min(2 * spell, LONGEST_SPELL);
            // Something counts in there. Longer pauses, up to 15 in 16.
            is_awake = quiet < DROWSY;
            wait_ms = quiet < 2 * DROWSY ? 1 : 15;
            if (!is_awake)
                batch(8 * LONGEST_SPELL);
        }
        return status;
    }

    void wake()
    {
        is_awake = true;
        quiet = 0;
        spell = FIRST_SPELL;
    }

    int run_paced()
    {
        uint64_t due = uint64_t((seconds() - began) * CYCLES);
        // Behind by more than a tenth of a second: what is lost is lost.
        if (due > paced + CYCLES / 10 + LONGEST_SPELL)
            paced = due - CYCLES / 10;
        if (paced >= due)
            return viaduct_process(dev, 1);
        uint64_t from = pace.cycle;
        batch(unsigned(std::min<uint64_t>(due - paced, LONGEST_SPELL)));
        paced += pace.cycle - from;
        return viaduct_process(dev, 0);
    }

    // One access at a time, whenever it came.
    int run_locked()
    {
        if (!wiring.has_accesses() && !granted && !waiting.empty()) {
            granted = CYCLES;
            give(std::move(waiting.front()));
            waiting.pop_front();
        }
        for (unsigned n = 0; n < LONGEST_SPELL && (granted || wiring.has_accesses()); n++) {
            cycle();
            granted -= granted > 0;
        }
        bool has_more = granted || wiring.has_accesses() || !waiting.empty();
        return viaduct_process(dev, has_more ? 0 : -1);
    }

    void give(Access &&access)
    {
        if (!wiring.push(std::move(access)))
            access.finish(false);
    }

    static double seconds()
    {
        timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec + t.tv_nsec / 1e9;
    }

    // Cycles until the design is looked at for the first time after something happened; more where
    // looking costs more.
    static constexpr unsigned FIRST_SPELL = 8 + sizeof(Vcard__Syms) / 512;
    static constexpr unsigned LONGEST_SPELL = FIRST_SPELL > 1024 ? FIRST_SPELL : 1024;
    // Cycles in which nothing is seen on the design's ports, but its state changes.
    static constexpr unsigned DROWSY = 1 << 20;

    viaduct_device *dev;
    Context context;
    Vcard top;
    Pace pace;
    Link link;
    Wiring wiring;
    Wave wave;
    std::unique_ptr<uint8_t[]> before;
    std::deque<Access> waiting;
    bool is_awake = true;
    int wait_ms = -1;
    unsigned quiet = 0, spell = FIRST_SPELL;
    uint64_t granted = 0, paced = 0, cycles_at_start = 0;
    double began = seconds();
};

static void on_read(void *context, unsigned bar, uint64_t offset, size_t len,
                    viaduct_answer *answer)
{
    Access access;
    access.bar = bar, access.offset = offset, access.len = len, access.answer = answer;
    if (len > sizeof access.small)
        access.large.resize(len);
    static_cast<Simulation *>(context)->push(std::move(access));
}

static void on_write(void *context, unsigned bar, uint64_t offset, const void *data, size_t len)
{
    Access access;
    access.is_write = true;
    access.bar = bar, access.offset = offset, access.len = len;
    if (len > sizeof access.small)
        access.large.resize(len);
    std::memcpy(access.data(), data, len);
    static_cast<Simulation *>(context)->push(std::move(access));
}

static void on_reset(void *context, int) { static_cast<Simulation *>(context)->reset(); }

static void on_config(void *context, unsigned, size_t)
{
    static_cast<Simulation *>(context)->configure();
}

static void on_signal(void *context, int) { static_cast<Simulation *>(context)->should_end = true; }

} // namespace viaduct

int main(int count, char **words)
{
    using namespace viaduct;
    viaduct_handlers handlers = {};
    handlers.read_later = on_read;
    handlers.write = on_write;
    handlers.reset = on_reset;
    handlers.config_changed = on_config;
    viaduct_device *dev = make_card();
    // A signal ends the program in good order: a waveform is to be complete.
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, nullptr);
    auto simulation = std::make_unique<Simulation>(dev);
    viaduct_set_handlers(dev, &handlers, simulation.get());
    viaduct_add_fd(dev, signalfd(-1, &signals, SFD_CLOEXEC), on_signal, simulation.get());
    if (viaduct_connect(dev, count > 1 ? words[1] : nullptr) || simulation->run()) {
        std::fprintf(stderr, "simulation: %s\n", viaduct_error(dev));
        return 1;
    }
    timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    std::fprintf(stderr, "simulation: %llu cycles in %.3f s of processor time\n",
                 (unsigned long long)simulation->cycles(), used.tv_sec + used.tv_nsec / 1e9);
    return 0;
}
