"""A PCIe device in Python, on libviaduct.

    import viaduct

    class Led(viaduct.Device):
        vendor, device = 0x1234, 0x0001
        bars = {0: viaduct.memory32(4096)}

        def write(self, bar, offset, data):
            print("led", "on" if data[0] else "off")

    Led().run()

The program is a model: start it with `viaduct pcie --socket PATH --model ./led.py`. The library is
looked for at $VIADUCT_LIBRARY, then where the system has libraries.
"""

import ctypes
import ctypes.util
import os
import sys
import traceback

__all__ = ["Device", "Error", "io", "memory32", "memory64"]


class Error(OSError):
    """Something that libviaduct could not do."""


class _Handlers(ctypes.Structure):
    READ = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t)
    RESET = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)
    CONFIG = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint, ctypes.c_size_t)
    _fields_ = [
        ("read", READ), ("read_later", ctypes.c_void_p), ("write", READ), ("reset", RESET),
        ("config_changed", CONFIG), ("host_present", RESET)]


_FIRE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_READY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)


def _load():
    path = os.environ.get("VIADUCT_LIBRARY") or ctypes.util.find_library("viaduct")
    library = ctypes.CDLL(path or "libviaduct.so")
    pointer, number, wide = ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint64
    size, text = ctypes.c_size_t, ctypes.c_char_p
    arguments = {
        "free": [pointer], "set_class": [pointer, ctypes.c_uint32, ctypes.c_uint8],
        "set_conventional": [pointer], "set_bar": [pointer, number, ctypes.c_int, wide],
        "set_bar_memory": [pointer, number, wide, wide], "bar_memory": [pointer, number],
        "set_intx": [pointer], "set_msi": [pointer, number],
        "set_msix": [pointer, number, number, ctypes.c_uint32, ctypes.c_uint32],
        "set_handlers": [pointer, ctypes.POINTER(_Handlers), pointer], "connect": [pointer, text],
        "run": [pointer], "stop": [pointer], "process": [pointer, ctypes.c_int],
        "fd": [pointer], "interrupt": [pointer, number], "line": [pointer, ctypes.c_int],
        "get_config": [pointer, number, pointer, size],
        "put_config": [pointer, number, pointer, size],
        "host_read": [pointer, wide, pointer, size], "host_write": [pointer, wide, pointer, size],
        "add_timer": [pointer, wide, wide, _FIRE, pointer],
        "add_fd": [pointer, ctypes.c_int, _READY, pointer], "remove": [pointer, ctypes.c_int],
        "log": [pointer, ctypes.c_int, text],
    }
    for name, kinds in arguments.items():
        getattr(library, "viaduct_" + name).argtypes = kinds
    library.viaduct_new.argtypes = [text, ctypes.c_uint16, ctypes.c_uint16]
    library.viaduct_new.restype = library.viaduct_bar_memory.restype = pointer
    library.viaduct_error.argtypes = [pointer]
    library.viaduct_error.restype = text
    library.viaduct_free.restype = library.viaduct_stop.restype = None
    library.viaduct_log.restype = None
    return library


def io(size):
    """A BAR of I/O ports."""
    return 1, size


def memory32(size, prefetchable=False):
    """A BAR of memory below 4 GiB."""
    return 2 | prefetchable << 8, size


def memory64(size, prefetchable=True):
    """A BAR of memory anywhere; it takes the next BAR as well."""
    return 3 | prefetchable << 8, size


class Device:
    """A device; subclasses say what it is and what it does."""

    vendor, device, class_code, revision = 0x1234, 0xffff, 0xff0000, 0
    bars = {}
    bar_memory = {}
    """Parts of bars that are memory which the machine maps: index to (offset, size)."""
    intx, msi, msix = False, 0, None
    """`msix` is (vectors, bar, offset of the table, offset of the pending bits)."""

    def read(self, bar, offset, size):
        """A driver reads; the bytes, or an int, little-endian. Without this it gets ones."""
        return b"\xff" * size

    def write(self, bar, offset, data):
        """A driver writes these bytes."""

    def reset(self, is_function_level):
        """Everything is to be as after power-on."""

    def memory(self, bar):
        """All of a bar with memory, as a view that can be written; once it is served."""
        address = self._library.viaduct_bar_memory(self._device, bar)
        if not address:
            raise ValueError(f"bar {bar} has no memory")
        return memoryview((ctypes.c_uint8 * self.bars[bar][1]).from_address(address)).cast("B")

    def __init__(self):
        self._library = _load()
        name = type(self).__name__.encode()
        self._device = self._library.viaduct_new(name, self.vendor, self.device)
        if not self._device:
            raise MemoryError("viaduct_new")
        self._kept = {}
        self._call("set_class", self.class_code, self.revision)
        for index, (kind, size) in self.bars.items():
            self._call("set_bar", index, kind, size)
        for index, (offset, size) in self.bar_memory.items():
            self._call("set_bar_memory", index, offset, size)
        if self.intx:
            self._call("set_intx")
        if self.msi:
            self._call("set_msi", self.msi)
        if self.msix:
            self._call("set_msix", *self.msix)
        guard = self._guard
        self._handlers = _Handlers(
            _Handlers.READ(guard(self._read)), None, _Handlers.READ(guard(self._write)),
            _Handlers.RESET(guard(lambda _, kind: self.reset(kind == 1))),
            _Handlers.CONFIG(lambda *_: None), _Handlers.RESET(lambda *_: None))
        self._call("set_handlers", ctypes.byref(self._handlers), None)

    def _call(self, name, *arguments):
        result = getattr(self._library, "viaduct_" + name)(self._device, *arguments)
        if result < 0:
            text = self._library.viaduct_error(self._device).decode()
            raise Error(-result, f"{name}: {text}")
        return result

    def _guard(self, function):
        """An exception can't go through C: it ends the device, which the driver sees as gone."""

        def guarded(*arguments):
            try:
                function(*arguments)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)

        return guarded

    def _read(self, _, bar, offset, data, size):
        answer = self.read(bar, offset, size)
        if isinstance(answer, int):
            answer = (answer & (1 << 8 * size) - 1).to_bytes(size, "little")
        answer = bytes(answer)[:size]
        ctypes.memmove(data, answer, len(answer))

    def _write(self, _, bar, offset, data, size):
        self.write(bar, offset, ctypes.string_at(data, size))

    def run(self, port=None):
        """Connects to the port at this socket, or at $VIADUCT_PORT, and serves until it has gone."""
        self._call("connect", os.fsencode(port) if port else None)
        self._call("run")

    def stop(self):
        """Ends `run`, from a handler."""
        self._library.viaduct_stop(self._device)

    def interrupt(self, vector=0):
        """Interrupts by what the driver has enabled; the INTx line stays up until `lower`."""
        self._call("interrupt", vector)

    def lower(self):
        """Lowers the INTx line."""
        self._call("line", 0)

    def host_read(self, address, size):
        """Bytes of host memory."""
        data = ctypes.create_string_buffer(size)
        self._call("host_read", address, data, size)
        return data.raw

    def host_write(self, address, data):
        """Writes bytes to host memory."""
        self._call("host_write", address, bytes(data), len(data))

    def config(self, offset, size):
        """Bytes of the configuration space, as a driver reads them."""
        data = ctypes.create_string_buffer(size)
        self._call("get_config", offset, data, size)
        return data.raw

    def put_config(self, offset, data):
        """Sets bytes of the configuration space, whatever a driver may write there."""
        self._call("put_config", offset, bytes(data), len(data))

    def timer(self, seconds, function, every=0):
        """Calls a function after some seconds, and then every so many; a number for `remove`."""
        fire = _FIRE(self._guard(lambda _: function()))
        micros = int(seconds * 1e6), int(every * 1e6)
        number = self._call("add_timer", *micros, fire, None)
        self._keep(number, fire)
        return number

    def watch(self, file, function):
        """Calls a function whenever the file is readable; a number for `remove`."""
        fd = file if isinstance(file, int) else file.fileno()
        ready = _READY(self._guard(lambda _, fd: function()))
        number = self._call("add_fd", fd, ready, None)
        self._keep(number, ready)
        return number

    def _keep(self, number, callback):
        # The one that had this number before may be the one that runs right now.
        self._previous = self._kept.get(number)
        self._kept[number] = callback

    def remove(self, number):
        """Ends a timer or a watch."""
        self._call("remove", number)

    def log(self, line):
        """A line in the port's log."""
        self._library.viaduct_log(self._device, 0, str(line).encode())
