"""What configure-pem-server.sh writes into Postgres's own files."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

SSL_SETTINGS = {
    "ssl": "on",
    "ssl_cert_file": "'server.crt'",
    "ssl_key_file": "'server.key'",
    "ssl_ca_file": "'root.crt'",
    "ssl_crl_file": "'root.crl'",
}


def change_hba(hba_file: Path, superuser: str, cidr_address: str) -> None:
    """PEM's lines at the very top and the superuser's at the end, unless PEM's are there."""
    text = hba_file.read_text()
    if re.search(r"^\s*hostssl\s+pem\s+\S*pem_agent\s.*\scert\b", text, re.MULTILINE):
        print(f"{hba_file} has lines for PEM's agents already", flush=True)
        return
    own_address = f"{first_own_address()}/32"
    rules = (
        ("pem", "+pem_user", own_address, "scram-sha-256"),
        ("postgres", "+pem_user", own_address, "scram-sha-256"),
        ("pem", "+pem_user", "127.0.0.1/32", "scram-sha-256"),
        ("pem", "+pem_agent", "127.0.0.1/32", "cert"),
        ("pem", "+pem_user", cidr_address, "scram-sha-256"),
        ("pem", "+pem_agent", cidr_address, "cert"),
    )
    top = "".join("\t".join(("hostssl", *rule)) + "\n" for rule in rules)
    end = f"host\tall\t{superuser}\t{own_address}\tscram-sha-256\n"
    hba_file.write_text(f"{top}{text.rstrip()}\n{end}")


def first_own_address() -> str:
    """The host's first IPv4 address that is not its loopback."""
    command = ["hostname", "-I"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return next((address for address in output.split() if "." in address), "127.0.0.1")


def change_settings(config_file: Path) -> None:
    """The SSL settings, each in the place where the file has it, else at the end."""
    text = config_file.read_text()
    for name, value in SSL_SETTINGS.items():
        line = f"{name} = {value}"
        text, found = re.subn(rf"^#?{name}\s*=.*$", line, text, count=1, flags=re.MULTILINE)
        if not found:
            text = f"{text.rstrip()}\n{line}\n"
    config_file.write_text(text)
