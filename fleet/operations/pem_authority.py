"""Certificates of PEM's own CA: signed on the PEM server, for keys that stay on their hosts."""

import base64
import shlex
from collections.abc import Generator
from contextlib import suppress

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pyinfra import host, logger
from pyinfra.api import FunctionCommand, Host, QuoteString, State, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from fleet.asking import ask
from fleet.certificates import Leaf, issued_by, why_renew, wrong_name, wrong_words
from fleet.facts.authority import KeyPairs, Pair
from fleet.facts.files import FileBytes, FileStates
from fleet.hosts import Fleet
from fleet.keystore import PkiError, read_certificate
from fleet.observe import heartbeat_of
from fleet.operations.commands import fail, run_script, tell
from fleet.operations.files import ISSUED, SIGNATURE
from fleet.operations.pem import agent_config, registration, with_password
from fleet.pem_authority import pem_authority, read, sign, subject
from fleet.pki import authority_file
from fleet.places import place_on
from fleet.platforms import Pooler
from fleet.pooler import pool_pair
from fleet.processes import processes
from fleet.render import script

_ALGORITHMS = {
    "p256": "-algorithm EC -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:named_curve",
    "rsa3072": "-algorithm RSA -pkeyopt rsa_keygen_bits:3072",
}


@operation()
def waiting(
    fleet: Fleet, leaf: Leaf, certificate: str, key: str, user: str
) -> Generator[PyinfraCommand, None, None]:
    """A new key and certificate wait beside the present ones, where those will not do.

    The key is made on the host and stays there. The certificate is signed on the PEM server, by a
    key that stays there. Both wait as `….pem-fleet-issued` for the step that proves them and puts
    them in their places; a run that is cut off before that leaves them for the next one.
    user: the OS user, and group, whose files they will be.
    """
    issued = (certificate + ISSUED, key + ISSUED)
    held = host.get_fact(KeyPairs, pairs=((certificate, key), issued))
    try:
        authority = pem_authority(fleet)
    except PkiError as error:
        # Before a key is made that nobody signs. The poolers' list of CAs needs the answer anyway.
        yield fail(str(error))
        return
    present = why_unfit(fleet, authority, leaf, held.get(certificate))
    reason = why_unfit(fleet, authority, leaf, held.get(issued[0]))
    if present and not reason:
        host.noop("a certificate of PEM's CA waits for its proof")
        return
    if not present:
        # A key alone may be there, of a run that got no signature for it.
        if host.get_fact(FileStates, paths=issued):
            yield StringCommand("rm -f", *(QuoteString(path) for path in issued))
        else:
            host.noop(f"{certificate} is good")
        return

    def issue(state: State, host: Host) -> bool:  # noqa: ARG001  pyinfra passes both
        try:
            _issue(fleet, host, leaf, issued, user)
        except PkiError as error:
            for line in str(error).splitlines():
                logger.error(f"{host.print_prefix}{line}")
            return False
        logger.info(f"{host.print_prefix}PEM's CA signed {leaf.file_stem}: {present}")
        return True

    yield FunctionCommand(issue, (), {})


@operation()
def by_registration(
    fleet: Fleet, leaf: Leaf, poolers: tuple[str, ...], certificate: str, key: str
) -> Generator[PyinfraCommand, None, None]:
    """A registered agent has a certificate of PEM's CA for the pooled role.

    PEM makes one at a registration only. So an agent without it is registered once more under its
    id and its name, into a directory of its own: agent.cfg and the running agent are not touched.
    An agent that is not registered yet gets one when it is.
    Call it with `_serial=True`: PEM refuses simultaneous registrations.
    """
    config = agent_config()
    if config is None or config.agent_id is None:
        host.noop("registration will give it one")
        return
    held = host.get_fact(KeyPairs, pairs=((certificate, key),))
    known = heartbeat_of(fleet, host.name, config)
    try:
        reason = why_unfit(fleet, pem_authority(fleet), leaf, held.get(certificate), ours=False)
    except PkiError as error:
        yield fail(str(error))
        return
    if not reason:
        host.noop(f"{certificate} is good")
        return
    if not known.answered:
        yield fail(
            f"PEM's database on {fleet.pem_server.connect_name} does not answer, so agent"
            f" {config.agent_id} gets no certificate\nHINT: make status INVENTORY=…"
        )
        return
    if known.agent_id is None:
        host.noop(f"PEM lost agent {config.agent_id}: registration will give it one")
        return
    tell([f"{certificate}: {reason}"])
    words = registration(fleet, poolers, known.display_name or host.name, config.agent_id)
    q, user = shlex.quote, fleet.pem_server.agent_user
    directory = certificate.rpartition("/")[0]
    another = f"PEM gave the certificate to another id than {config.agent_id}: $got. It is good."
    yield with_password(
        fleet,
        "set -eu; umask 077;"
        f" mkdir -p {q(directory)}; new=$(mktemp -d {q(directory)}/pem-fleet.XXXXXX);"
        " trap 'rm -rf \"$new\"' EXIT;"
        f' {shlex.join(words)} --config-dir "$new" --cert-path "$new";'
        f' mv -f "$new"/{q(user)}.key {q(key)}; mv -f "$new"/{q(user)}.crt {q(certificate)};'
        ' got=$(sed -n "s/^agent_id *= *//p" "$new/agent.cfg");'
        f' [ "$got" = {config.agent_id} ] || {{ echo "{another}" >&2;'
        ' echo "HINT: UPDATE pem.agent SET active = false WHERE id = $got, then run again" >&2;'
        " exit 1; }",
    )


@operation()
def trusted_still(
    fleet: Fleet, certificate: str, key: str
) -> Generator[PyinfraCommand, None, None]:
    """Fail where the pooler would trust the CA no more that its own present certificate is of.

    The agents' certificates are of it as well, and would be refused. A CA that was made anew is
    none that is dropped.
    """
    settings = fleet.certificate_authority
    wanted, path = settings.client_authorities, authority_file(settings, "client")
    held = host.get_fact(KeyPairs, pairs=((certificate, key),))
    dropped = False
    # Where the certificate cannot be read, or PEM not be asked, this step cannot tell.
    with suppress(PkiError):
        if certificate in held and len(wanted) == 1:
            present = read(held[certificate]["certificate"], certificate)
            ours = path.exists() and issued_by(present, read_certificate(path))
            dropped = ours
            if wanted == ("own",):
                dropped = not ours and issued_by(present, pem_authority(fleet))
    if not dropped:
        host.noop("the CA of the pooler's own certificate is trusted")
        return
    between = (*wanted, "pem" if wanted == ("own",) else "own")
    yield fail(
        f"{certificate} is of the CA that poolers would trust no more with"
        f" client_authorities={wanted!r}, and so are the agents' certificates; it is trusted still"
        f"\nHINT: client_authorities={between!r} and a full deploy, then {wanted!r}"
    )


@operation()
def ours_needed_no_more(fleet: Fleet) -> Generator[PyinfraCommand, None, None]:
    """Fail while a pooler logs in to the database with a certificate of our own client CA.

    A pooler that cannot be reached is told and does not count. One that we configured and that
    holds no certificate where it should fails too: nobody knows with which it logs in.
    """
    path, names = authority_file(fleet.certificate_authority, "client"), []
    ours = read_certificate(path) if path.exists() else None
    for machine in fleet.pgbouncer.hosts:
        place = place_on(fleet.pgbouncer, machine.name)
        pair = pool_pair(place) if place else ("", "")
        held = ask(machine.name, KeyPairs, "root", pairs=(pair,)) if place else None
        if place is None or held is None:
            tell([f"{machine.name} does not say which certificate it logs in with"])
        elif pair[0] not in held:
            if _configured(fleet, machine.name, place):
                yield fail(
                    f"{machine.name} has no certificate {pair[0]}, so nobody knows which one its"
                    " PgBouncer logs in to the database with; Postgres trusts all that it did"
                    "\nHINT: make deploy INVENTORY=… DEPLOY=deploys/pgbouncer.py"
                    f" LIMIT={machine.name}"
                )
                return
        elif ours and issued_by(read(held[pair[0]]["certificate"], pair[0]), ours):
            names.append(machine.name)
    if not names:
        host.noop("no pooler logs in with a certificate of ours")
        return
    yield fail(
        f"{' and '.join(names)} log in to the database with certificates of {path}, which Postgres"
        " would trust no more; it does still"
        '\nHINT: client_authorities=("pem", "own") and a full deploy, then take "own" out'
    )


def _configured(fleet: Fleet, name: str, place: Pooler) -> bool:
    """Whether a pooler has a configuration of ours."""
    inis = {f"{place.directory}/{place.ini}", *(one.ini for one in processes(fleet, place))}
    texts = [ask(name, FileBytes, "root", path=ini) for ini in inis]
    return any(SIGNATURE.encode() in text for text in texts if text is not None)


def why_unfit(
    fleet: Fleet, authority: x509.Certificate, leaf: Leaf, held: Pair | None, *, ours: bool = True
) -> str:
    """Why a certificate on a host will not do as the leaf that PEM's CA issues; '' if it will.

    ours: signed by us, so its words are ours; PEM's own say nothing of their purpose.
    """
    if held is None:
        return "not issued yet"
    try:
        certificate = read(held["certificate"], leaf.file_stem)
    except PkiError:
        return "it cannot be read"
    if not issued_by(certificate, authority):
        return "not issued by PEM's present CA"
    if not held["key_matches"]:
        return "its key is another certificate's"
    reason = why_renew(certificate, authority, fleet.certificate_authority.renew_days)
    return reason or (wrong_words if ours else wrong_name)(certificate, leaf)


def _issue(fleet: Fleet, host: Host, leaf: Leaf, paths: tuple[str, str], user: str) -> None:
    """Key and request on the host, signature on the PEM server, certificate to the host."""
    certificate, key = paths
    values = {
        "key": key,
        "owner": f"{user}:{user}",
        "subject": "".join(f"/{one.rfc4514_string()}" for one in subject(leaf).rdns),
        "signature": SIGNATURE,
        "algorithm": _ALGORITHMS[fleet.certificate_authority.key_type],
    }
    request = _run(host, script("request-certificate.sh", values))
    text = f"# {SIGNATURE}; edits here are lost.\n".encode()
    text += sign(fleet, leaf, request).public_bytes(serialization.Encoding.PEM)
    q = shlex.quote
    _run(
        host,
        f"""\
set -eu
umask 077
echo {base64.b64encode(text).decode()} | base64 -d > {q(certificate)}
chown {q(f"{user}:{user}")} {q(certificate)}
sync {q(certificate)} {q(key)}
""",
    )


def _run(host: Host, text: str) -> str:
    """What a script prints on the host. Raises PkiError."""
    worked, said = run_script(host, text, _sudo=True)
    if not worked:
        raise PkiError(
            f"{host.name}: no key and certificate could be made: {said.stderr}"
            "\nHINT: openssl must be there, and room on the disk"
        )
    return "\n".join(said.stdout_lines)
