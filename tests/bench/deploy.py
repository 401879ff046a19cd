"""The benchmark's content by our own operations.

pyinfra tests/lab/hundred_agents.py tests/bench/deploy.py
"""

from pydantic import SecretStr
from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import systemd

from fleet import is_entrypoint
from fleet.operations.files import File, directory, put
from tests.bench.content import DIRECTORIES, FILES, SERVICE, root_of


@deploy("Bench")
def bench(root: str) -> None:
    """Directories, files with a secret among them, and a question about a service."""
    for path, mode in DIRECTORIES.items():
        directory(name=f"Directory {path}", path=f"{root}/{path}".rstrip("/"), mode=mode)
    put(
        name="Write the files",
        files=tuple(
            File(f"{root}/{path}", SecretStr(text) if secret else text, mode=mode)
            for path, (text, mode, secret) in FILES.items()
        ),
    )
    systemd.service(name="See that it runs", service=SERVICE, running=True, enabled=None)


if is_entrypoint(__name__):
    bench(root=root_of("pyinfra", host.name), _sudo=True)
