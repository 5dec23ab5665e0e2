"""The link between a worker and the coordinator, as a proxy that can be cut, slow, or flip a byte."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

from shoal.wire.framing import MAGIC

CHUNK_BYTES = 64 << 10
CONNECT_SECONDS = 20.0
RETRY_SECONDS = 0.02


class Link:
    """Hands on every byte between who connects and 127.0.0.1:port, in threads of its own.

    Each setting holds until it is changed. delay: seconds that each piece takes. closed: nothing gets through,
    and nobody is told. flips: so many frames of the worker's will have a byte of their header flipped.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: set[socket.socket] = set()
        self.delay = 0.0
        self.flips = 0
        self._open = threading.Event()
        self._open.set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        self._open.clear()

    def mend(self) -> None:
        self.delay = 0.0
        self._open.set()

    def close(self) -> None:
        self.mend()
        for end in (self._listener, *self._sockets):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.add(near)
            threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        """Who connects while nobody listens behind the link is kept waiting: a link refuses nobody."""
        until = time.monotonic() + CONNECT_SECONDS
        while time.monotonic() < until:
            try:
                far = socket.create_connection(("127.0.0.1", self._port), CONNECT_SECONDS)
                break
            except OSError:
                time.sleep(RETRY_SECONDS)
        else:
            near.close()
            return
        far.settimeout(None)
        self._sockets.add(far)
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, target, upwards in ((near, far, True), (far, near, False)):
            threading.Thread(target=self._pump, args=(source, target, upwards), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, upwards: bool) -> None:
        try:
            while data := source.recv(CHUNK_BYTES):
                time.sleep(self.delay)
                self._open.wait()
                target.sendall(self._flipped(data) if upwards and self.flips else data)
        except OSError:
            pass  # an end is gone; the other learns of it below
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            self._sockets.discard(end)

    def _flipped(self, data: bytes) -> bytes:
        at = data.find(MAGIC)
        if at < 0:
            return data
        self.flips -= 1
        return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
