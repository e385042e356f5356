"""The bare echo: a uvloop protocol that answers `reply_size` bytes to every `request_size` bytes and looks at none.

What is left when a server parses, looks up and writes nothing: the event loop, the kernel, and one Python call per
wake-up. A server is measured against this, not against zero.
"""


cdef class Echo:
    cdef object write
    cdef bytes reply
    cdef Py_ssize_t request_size
    cdef Py_ssize_t pending

    def __init__(self, Py_ssize_t request_size, Py_ssize_t reply_size):
        self.request_size = request_size
        self.reply = bytes(reply_size)
        self.pending = 0

    def connection_made(self, transport):
        self.write = transport.write

    def connection_lost(self, error):
        self.write = None

    def eof_received(self):
        return False

    def pause_writing(self):
        pass

    def resume_writing(self):
        pass

    def data_received(self, bytes data):
        cdef Py_ssize_t size = self.pending + len(data)
        cdef Py_ssize_t count = size // self.request_size
        self.pending = size - count * self.request_size
        if count == 1:
            self.write(self.reply)
        elif count > 1:
            self.write(self.reply * count)
