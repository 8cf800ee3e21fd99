#!/usr/bin/env python3
"""A card with a megabyte of memory that the machine maps, behind a megabyte that it does not. Writing
register 0 takes the memory's CRC-32, which can be read there, and inverts every bit; register 4 counts
accesses to either megabyte that came as messages."""
import zlib

import viaduct

SIZE = 1 << 20
INVERT = bytes(255 - n for n in range(256))


class Window(viaduct.Device):
    vendor, device, class_code = 0x1234, 0x0fb0, 0x058000
    bars = {0: viaduct.memory32(4096), 2: viaduct.memory64(2 * SIZE)}
    bar_memory = {2: (SIZE, SIZE)}
    sum = messages = 0

    def read(self, bar, offset, size):
        self.messages += bar == 2
        return {0: self.sum, 4: self.messages}.get(offset, 0)

    def write(self, bar, offset, data):
        self.messages += bar == 2
        if bar == 0 and offset == 0:
            memory = self.memory(2)[SIZE:]
            self.sum = zlib.crc32(memory)
            memory[:] = bytes(memory).translate(INVERT)


Window().run()
