"""A long cable between two network namespaces, for kernels without netem: packets arrive, but later.

python -m shoal.bench.relay DEVICE DELAY_MS NAMESPACE NAMESPACE

Makes a tun device in each namespace and carries every packet from one to the other, DELAY_MS after it
was sent, in order. The kernel hands over packets of up to 64 KiB as they are before segmentation (and takes
them so), so 1 Gbit/s are some two thousand packets a second. The devices are gone with this process.

A packet's start is the header that the kernel puts before it (struct virtio_net_hdr), which travels along.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue

from shoal.runtime.process import READY

CLONE_NEWNET = 0x40000000  # from <linux/sched.h>
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0  # from <linux/if_tun.h>, as the next two lines
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
OFFLOADS = 0x01 | 0x02 | 0x04  # checksums, TCP segmentation for IPv4 and IPv6
PACKET_BYTES_MAX = (64 << 10) + 64

Packets = SimpleQueue[tuple[float, bytes]]


def main() -> None:
    device, delay_ms, *namespaces = sys.argv[1:]
    here, there = (open_device(name, device) for name in namespaces)
    for source, target in ((here, there), (there, here)):
        held: Packets = SimpleQueue()
        threading.Thread(target=take, args=(source, held, float(delay_ms) / 1000), daemon=True).start()
        threading.Thread(target=give, args=(target, held), daemon=True).start()
    print(READY, device, flush=True)
    threading.Event().wait()


def open_device(namespace: str, device: str) -> int:
    """A new tun device in this namespace; returns its file descriptor."""
    library = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open() as file:
        if library.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns into {namespace}")
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(descriptor, TUNSETOFFLOAD, OFFLOADS)
    return descriptor


def take(source: int, held: Packets, delay: float) -> None:
    """Read packets as they come, and note when each is due."""
    while True:
        try:
            packet = os.read(source, PACKET_BYTES_MAX)
        except OSError:
            time.sleep(delay)  # the device is down, as it is before it has an address
            continue
        held.put((time.monotonic() + delay, packet))


def give(target: int, held: Packets) -> None:
    """Write each packet when it is due."""
    while True:
        due, packet = held.get()
        left = due - time.monotonic()
        if left > 0:
            time.sleep(left)
        try:
            os.write(target, packet)
        except OSError:
            pass  # down: a packet to nobody


if __name__ == "__main__":
    main()
