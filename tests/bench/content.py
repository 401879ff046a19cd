"""What each of the 100 agents gets in the benchmark, whichever tool brings it."""

DIRECTORIES = {"": "755", "conf": "755", "tls": "700"}

# path: text, mode, whether it is a secret
FILES = {
    "conf/agent.cfg": (
        "[PEM/agent]\npem_host=bouncer1,bouncer2\npem_port=6432,6432\n",
        "644",
        False,
    ),
    "conf/unit.conf": ("[Service]\nEnvironment=PGSSLROOTCERT=/etc/ca.crt\n", "644", False),
    "conf/long.conf": ("".join(f"setting{n} = {n}\n" for n in range(200)), "640", False),
    "tls/agent.crt": ("certificate\n" * 20, "644", False),
    "tls/agent.key": ("a secret\n" * 10, "600", True),
}

SERVICE = "ssh"


def root_of(tool: str, agent: str) -> str:
    """Where one agent's files are; each tool has a tree of its own."""
    return f"/srv/bench/{tool}/{agent}"
