"""SCRAM-SHA-256 verifiers, made on the operator's machine: no server's log sees a password."""

import base64
import hashlib
import hmac
import secrets
import unicodedata

ITERATIONS = 4096
_SALT_BYTES = 16


def verifier(password: str, salt: bytes | None = None, iterations: int = ITERATIONS) -> str:
    """The string that Postgres keeps for a password (RFC 5803, as pg_authid.rolpassword has it).

    salt: random when None. iterations: of PBKDF2, Postgres' own default 4096.
    Raises ValueError when the password has characters that SASLprep would change or refuse:
    clients differ in what they do with them.
    """
    if (
        not password
        or unicodedata.normalize("NFKC", password) != password
        or not password.isprintable()
    ):
        raise ValueError("a password must be printable, in normal form and not empty")
    salt = secrets.token_bytes(_SALT_BYTES) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (
        base64.b64encode(part).decode() for part in (salt, stored_key, server_key)
    )
    return f"SCRAM-SHA-256${iterations}:{salt64}${stored64}:{server64}"
