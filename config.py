"""pyinfra's own settings; it reads this file from the folder it is started in."""

import logging
import sys
from getpass import getpass

import gevent
from pyinfra import config
from pyinfra.api.exceptions import PyinfraError
from pyinfra.connectors import util

config.REQUIRE_PYINFRA_VERSION = "~=3.10.0"
# Stop after the step in which a host failed: what is behind it may depend on it.
config.FAIL_PERCENT = 0

# A fact that no host could answer ends the run; pyinfra says so, gevent need not print a traceback.
gevent.get_hub().NOT_ERROR += (PyinfraError,)

# sshd turns some of many simultaneous logins away (MaxStartups), and they are tried again; paramiko
# would print a traceback for each. What is lost in the end, pyinfra says.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


def _sudo_password(prompt: str) -> str:
    """Ask for sudo's password, where there is somebody to ask; otherwise only that host fails."""
    if not sys.stdin.isatty():
        raise PermissionError(
            "sudo wants a password and there is no terminal to ask on; or this user may not use it"
            "\nHINT: on the host: echo 'USER ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/pem-fleet"
        )
    return getpass(prompt)


# pyinfra itself would end the run for all hosts with a traceback.
util.getpass = _sudo_password
