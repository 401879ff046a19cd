"""Verifiers, against the published example of RFC 7677, section 3."""

import base64
import hashlib
import hmac

import pytest

from fleet.scram import verifier

SALT = "W22ZaJ0SNY7soEsUEjb6gQ=="
AUTH_MESSAGE = (
    b"n=user,r=rOprNGfwEbeRWgbNEkqO"
    b",r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    b",c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
)
CLIENT_PROOF = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
SERVER_SIGNATURE = "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@pytest.fixture
def keys():
    """StoredKey and ServerKey of the example's user, from our verifier."""
    scheme, cost, both = verifier("pencil", base64.b64decode(SALT), 4096).split("$")
    assert (scheme, cost) == ("SCRAM-SHA-256", f"4096:{SALT}")
    stored, server = (base64.b64decode(key) for key in both.split(":"))
    return stored, server


def test_the_stored_key_accepts_the_proof_of_the_examples_client(keys):
    stored_key, _ = keys
    signature = hmac.digest(stored_key, AUTH_MESSAGE, "sha256")
    proof = base64.b64decode(CLIENT_PROOF)
    client_key = bytes(ours ^ theirs for ours, theirs in zip(signature, proof, strict=True))
    assert hashlib.sha256(client_key).digest() == stored_key


def test_the_server_key_signs_as_the_examples_server_does(keys):
    _, server_key = keys
    signature = hmac.digest(server_key, AUTH_MESSAGE, "sha256")
    assert base64.b64encode(signature).decode() == SERVER_SIGNATURE


def test_without_a_salt_each_verifier_has_its_own():
    assert verifier("pencil") != verifier("pencil")


def test_the_password_is_not_in_the_verifier():
    assert "pencil" not in verifier("pencil")


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("", id="empty"),
        pytest.param("pen\u00adcil", id="a soft hyphen, which SASLprep drops"),
        pytest.param("pencil\n", id="a newline"),
        pytest.param("\u2168", id="a Roman numeral sign, which becomes IX"),
        pytest.param("cafe\u0301", id="a decomposed accent"),
        pytest.param("a\u00a0b", id="a no-break space"),
    ],
)
def test_a_password_that_clients_would_prepare_differently_is_refused(password):
    with pytest.raises(ValueError, match="printable, in normal form and not empty"):
        verifier(password)


@pytest.mark.parametrize("password", ["pencil", "a b", "pässword", "'; DROP ROLE x; --"])
def test_other_passwords_are_taken_as_they_are(password):
    assert verifier(password).startswith("SCRAM-SHA-256$4096:")
