"""A server for tests of published ports: tells who it is and who asks, over TCP and UDP, and what happens to it at its
stop. Runs in a busybox container on the machine's own Python, which is mounted there."""

from __future__ import annotations

import sys
import sysconfig

PROGRAM = r"""
import os, signal, socket, sys, threading, time
name = socket.gethostname()
port = int(os.environ.get("PORT", "80"))
family = socket.AF_INET6 if os.path.exists("/proc/net/if_inet6") else socket.AF_INET
stopped = []
def plain(address):
    return address[0].removeprefix("::ffff:")
def opened(kind):
    channel = socket.socket(family, kind)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        channel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    channel.bind(("", port))
    return channel
def tcp(listener):
    listener.listen(512)
    while True:
        channel, peer = listener.accept()
        if stopped and plain(peer) != "127.0.0.1":  # not a health check's
            print("came after the signal", flush=True)
        threading.Thread(target=serve, args=(channel, peer), daemon=True).start()
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
def stop(*_):
    stopped.append(1)
    print("signal", flush=True)
    signal.alarm(1)
def end(*_):
    print("end", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGALRM, end)
threading.Thread(target=udp, args=(opened(socket.SOCK_DGRAM),), daemon=True).start()
threading.Thread(target=tcp, args=(opened(socket.SOCK_STREAM),), daemon=True).start()
print("ready", flush=True)
while True:
    signal.pause()
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
