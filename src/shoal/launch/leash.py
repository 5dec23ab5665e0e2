"""Runs a command on a leash: the kernel kills it the moment its launcher is gone, however that died.

    python leash.py LAUNCHER_PID COMMAND...

Replaces itself with COMMAND, so the process id and the streams stay the same. Run as a script, alone
and before anything else is imported: it costs some 15 ms and no second process.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>; survives exec


def main() -> None:
    launcher, command = int(sys.argv[1]), sys.argv[2:]
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != launcher:  # it died before the leash was on
        sys.exit(f"shoal: error: the launcher (pid {launcher}) is gone")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
