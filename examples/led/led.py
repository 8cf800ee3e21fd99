#!/usr/bin/env python3
"""Eight LEDs and eight switches: register 0 lights LEDs, register 4 reads the switches, which
follow the LEDs after 10 ms, with an interrupt; register 8 counts changes."""
import viaduct


class Led(viaduct.Device):
    vendor, device, class_code = 0x1234, 0x1ed0, 0x088000
    bars = {0: viaduct.memory32(4096)}
    msi = 1
    leds = switches = changes = 0

    def read(self, bar, offset, size):
        return {0: self.leds, 4: self.switches, 8: self.changes}.get(offset, 0)

    def write(self, bar, offset, data):
        if offset == 0 and data[0] != self.leds:
            self.leds, self.changes = data[0], self.changes + 1
            self.log(f"{self.leds:08b}".replace("1", "*").replace("0", "."))
            self.timer(0.01, self.follow)

    def follow(self):
        self.switches = self.leds
        self.interrupt()

    def reset(self, is_function_level):
        self.leds = self.switches = self.changes = 0


Led().run()
