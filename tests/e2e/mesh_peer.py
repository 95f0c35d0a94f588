"""A server for tests of published ports: tells who it is and who asks, over TCP and UDP, and what happens to it at its
stop. Runs in a busybox container on the machine's own Python, which is mounted there."""

from __future__ import annotations

import sys
import sysconfig

PROGRAM = r"""
import os, select, signal, socket, sys, threading, time
name = socket.gethostname()
port = int(os.environ.get("PORT", "80"))
family = socket.AF_INET6 if os.path.exists("/proc/net/if_inet6") else socket.AF_INET
def plain(address):
    return address[0].removeprefix("::ffff:")
def opened(kind):
    channel = socket.socket(family, kind)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        channel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    channel.bind(("", port))
    return channel
def serve(channel, peer):
    with channel:
        while data := channel.recv(4096):
            channel.sendall(f"{name} {plain(peer)}\n".encode())
            if b"HTTP/1" in data:
                return
def udp(channel):
    while True:
        data, peer = channel.recvfrom(4096)
        channel.sendto(f"{name} {plain(peer)}\n".encode(), peer)
def accept(late):
    # False if nobody waits to be accepted.
    try:
        channel, peer = listener.accept()
    except BlockingIOError:
        return False
    channel.setblocking(True)
    if late and plain(peer) != "127.0.0.1":  # not a health check's
        print("came after the signal", flush=True)
    threading.Thread(target=serve, args=(channel, peer), daemon=True).start()
    return True
def wait():
    signal.sigwait({signal.SIGTERM})
    os.write(told, b"!")
# Waited for, not handled: of several threads any may take a signal that is not blocked, also the one that is just
# starting another, and Python's handler runs only once the main thread wakes up, which nobody then sees to.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
listener, (stop, told) = opened(socket.SOCK_STREAM), os.pipe()
listener.listen(512)
listener.setblocking(False)
threading.Thread(target=udp, args=(opened(socket.SOCK_DGRAM),), daemon=True).start()
threading.Thread(target=wait, daemon=True).start()
print("ready", flush=True)
while stop not in select.select([listener, stop], [], [])[0]:
    accept(late=False)
while accept(late=False):
    pass  # who was there already: on a busy machine they may have waited
print("signal", flush=True)
end = time.monotonic() + 1
while (left := end - time.monotonic()) > 0:
    if select.select([listener], [], [], left)[0]:
        accept(late=True)
print("end", flush=True)
os._exit(0)
"""
_FOLDERS = ("/usr", "/lib", "/lib64", sys.base_prefix)
#: Of `docker service create`, before the image.
OPTIONS = (
    *(word for folder in sorted(set(_FOLDERS))  # in the order that `docker service update` puts them
      for word in ("--mount", f"type=bind,source={folder},target={folder},readonly")),
    "-e", f"LD_LIBRARY_PATH=/usr/lib/{sysconfig.get_config_var('MULTIARCH')}",
)  # fmt: skip
#: The image and its command.
PEER = ("busybox", f"{sys.base_prefix}/bin/python3", "-S", "-c", PROGRAM)
