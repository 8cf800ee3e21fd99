// What a driver does with the registers of a card.
#pragma once
#include <cstdint>
#include <vector>

#include "viaduct.h"

namespace viaduct {

struct Access {
    bool is_write = false;
    unsigned bar = 0;
    uint64_t offset = 0;
    size_t len = 0;
    // Who waits for a read.
    viaduct_answer *answer = nullptr;
    uint8_t small[8] = {};
    std::vector<uint8_t> large;

    uint8_t *data() { return len <= sizeof small ? small : large.data(); }

    void finish(bool is_good)
    {
        if (answer)
            viaduct_answer_read(answer, is_good ? data() : nullptr, is_good ? len : 0);
        answer = nullptr;
    }
};

} // namespace viaduct
