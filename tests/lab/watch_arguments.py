"""Print the argument list of every program that starts on this machine, each line once.

The lab's hosts share its kernel, so theirs are among them. The kernel tells of every start
(cn_proc); the list is read from /proc right after it, with real-time priority, as a program may
end within a millisecond. Needs root; ends when it is killed.
"""

import os
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

# Of linux/connector.h and linux/cn_proc.h.
_CONNECTOR = 11  # NETLINK_CONNECTOR
_PROCESSES = (1, 1)  # CN_IDX_PROC, CN_VAL_PROC
_LISTEN = struct.pack("=I", 1)  # PROC_CN_MCAST_LISTEN
_STARTED = 0x2  # PROC_EVENT_EXEC
_HEADERS_BYTES = 16 + 20  # struct nlmsghdr, struct cn_msg
_DONE = 3  # NLMSG_DONE
_BUFFER_BYTES = 32 << 20


def main() -> None:
    """Watch for ever."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _CONNECTOR) as kernel:
        kernel.setsockopt(socket.SOL_SOCKET, 33, _BUFFER_BYTES)  # SO_RCVBUFFORCE
        kernel.bind((0, 1))
        wish = struct.pack("=IIIIHH", *_PROCESSES, 0, 0, len(_LISTEN), 0) + _LISTEN
        kernel.send(struct.pack("=IHHII", 16 + len(wish), _DONE, 0, 0, os.getpid()) + wish)
        seen = set()
        while True:
            event = kernel.recv(4096)
            (what,) = struct.unpack_from("=I", event, _HEADERS_BYTES)
            if what != _STARTED:
                continue
            (process,) = struct.unpack_from("=I", event, _HEADERS_BYTES + 16)
            with suppress(OSError):  # it has ended
                line = Path(f"/proc/{process}/cmdline").read_bytes()
                if line not in seen:
                    seen.add(line)
                    sys.stdout.buffer.write(line + b"\n")
                    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
