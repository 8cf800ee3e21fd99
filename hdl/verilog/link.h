// What a design's PCI Express block knows of its link and of what the driver has set up, as the
// configuration space has it.
#pragma once
#include <cstdint>

#include "viaduct.h"

namespace viaduct {

struct Link {
    // Device Control and Device Status, Link Control; 0 for a conventional card.
    uint16_t device_control = 0x2010, link_control = 0, command = 0;
    bool has_msi = false;
    unsigned msi_vectors_log2 = 0;
    uint64_t msi_address = 0;
    uint32_t msi_data = 0;
    bool has_msix = false;
    // Writes that the design has sent in packets, and those of them that host memory has got: an
    // interrupt waits for those that were begun before it.
    uint64_t writes_begun = 0, writes_done = 0;

    unsigned payload_code() const { return device_control >> 5 & 7; }
    unsigned request_code() const { return device_control >> 12 & 7; }
    // Bytes; 6 and 7 are reserved.
    unsigned largest_payload() const { return 128u << (payload_code() > 5 ? 0 : payload_code()); }
    unsigned largest_request() const { return 128u << (request_code() > 5 ? 0 : request_code()); }

    // To be called when the port has let the model in, at a reset, and after each change.
    void refresh(viaduct_device *dev)
    {
        uint64_t begun = writes_begun, done = writes_done;
        *this = Link();
        writes_begun = begun, writes_done = done;
        command = get<uint16_t>(dev, 4);
        uint8_t at = get<uint16_t>(dev, 6) & 0x10 ? get<uint8_t>(dev, 0x34) : 0;
        // As many as have room; a list that goes round ends there.
        for (int n = 0; n < 48 && at >= 0x40; n++) {
            at &= 0xfc;
            uint8_t id = get<uint8_t>(dev, at);
            if (id == 0x10) {
                device_control = get<uint16_t>(dev, at + 8);
                link_control = get<uint16_t>(dev, at + 16);
            } else if (id == 0x05) {
                refresh_msi(dev, at);
            } else if (id == 0x11) {
                has_msix = get<uint16_t>(dev, at + 2) >> 15;
            }
            at = get<uint8_t>(dev, at + 1);
        }
    }

    // The vector that a write of a dword there is an MSI of, or -1.
    int msi_vector(uint64_t address, uint32_t data) const
    {
        uint32_t low = (1u << msi_vectors_log2) - 1;
        if (!has_msi || address != msi_address || (data & ~low) != (msi_data & ~low))
            return -1;
        return int(data & low);
    }

private:
    void refresh_msi(viaduct_device *dev, unsigned at)
    {
        uint16_t control = get<uint16_t>(dev, at + 2);
        bool is_wide = control & 0x80;
        has_msi = control & 1;
        msi_vectors_log2 = control >> 4 & 7;
        msi_address = get<uint32_t>(dev, at + 4);
        if (is_wide)
            msi_address |= uint64_t(get<uint32_t>(dev, at + 8)) << 32;
        msi_data = get<uint16_t>(dev, at + (is_wide ? 12 : 8));
    }

    template <class T> static T get(viaduct_device *dev, unsigned at)
    {
        T value = 0;
        viaduct_get_config(dev, at, &value, sizeof value);
        return value;
    }
};

} // namespace viaduct
