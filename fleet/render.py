"""Templates of templates/, rendered strictly, and shell scripts of files/ with their variables."""

import shlex

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fleet import ROOT

_environment = Environment(
    loader=FileSystemLoader(ROOT / "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    # Configuration files, not HTML.
    autoescape=False,  # noqa: S701  no HTML is made
)


def render(template: str, **values: object) -> str:
    """The text of templates/<template>, with a line that says where it comes from."""
    managed_by = f"Written by pem-fleet from templates/{template}; edits here are lost."
    return _environment.get_template(template).render(managed_by=managed_by, **values)


def script(name: str, values: dict[str, str]) -> str:
    """The shell of files/<name>, with the variables set that it names at its top."""
    settings = "\n".join(f"{key}={shlex.quote(value)}" for key, value in values.items())
    return f"{settings}\n{(ROOT / 'files' / name).read_text()}"
