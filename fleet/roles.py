"""What every role of an inventory shares: strict, frozen, and mistakes that are told together."""

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from fleet.mistakes import Mistake, any_noted, inventory_line, note


class Role(BaseModel):
    """One thing an inventory may say. Checked when it is written, before any connection.

    Settings are strict (no "40" for 40), unknown ones are refused, and nothing can be changed
    afterwards: `but()` makes a changed copy, checked again. A role with mistakes notes them and
    stays as it was written, so that the rest of the inventory is read and its mistakes are told
    in the same breath.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    if not TYPE_CHECKING:  # type checkers keep the exact signature that pydantic derives

        def __init__(self, **settings: object) -> None:
            try:
                super().__init__(**settings)
            except ValidationError as error:
                for details in error.errors():
                    if not _told_by_a_part(details, error.errors()):
                        note(_mistake(type(self), details))
            except (AttributeError, TypeError):
                # A cross-check stumbled over a part that is wrong itself, and is noted already.
                if not any_noted():
                    raise
            else:
                return
            _keep_as_written(self, settings)

    def but(self, **changes: object) -> Self:
        """The same settings with some changed; checked again, unlike pydantic's model_copy()."""
        return type(self)(**{**dict(self), **changes})

    def to_json(self) -> dict[str, Any]:
        """What `pyinfra INVENTORY debug-inventory` prints; secrets stay masked."""
        return self.model_dump(mode="json")


def _keep_as_written(role: Role, settings: dict[str, object]) -> None:
    """Give a role that failed its checks the values as written, and defaults for the rest."""
    fields = type(role).model_fields
    values = {name: field.get_default(call_default_factory=False) for name, field in fields.items()}
    object.__setattr__(role, "__dict__", {**values, **settings})
    object.__setattr__(role, "__pydantic_fields_set__", set(settings))
    object.__setattr__(role, "__pydantic_extra__", None)
    object.__setattr__(role, "__pydantic_private__", None)


def _told_by_a_part(details: ErrorDetails, found: list[ErrorDetails]) -> bool:
    """True for what follows from a mistake that is told where it was made.

    It is a cross-check of another role in this one, or a tuple that pydantic calls too short
    because it leaves out an item that is wrong itself.
    """
    loc, kind = details["loc"], details["type"]
    if kind == "too_short":
        return any(one["loc"][:-1] == loc for one in found)
    return kind == "value_error" and bool(loc) and isinstance(details["input"], Role)


def _mistake(role: type[Role], details: ErrorDetails) -> Mistake:
    """One of pydantic's findings in the inventory's words, without the value: it may be secret."""
    setting = ".".join(str(part) for part in details["loc"])
    subject = f"{role.__name__}({setting})" if setting else role.__name__
    problem, _, hint = details["msg"].removeprefix("Value error, ").partition("\nHINT: ")
    top = str(details["loc"][0]) if details["loc"] else ""
    if details["type"] == "extra_forbidden":
        problem = "no such setting"
        near = get_close_matches(setting, role.model_fields, n=1)
        hint = f"write {near[0]}=…" if near else "known: " + ", ".join(role.model_fields)
    elif details["type"] == "missing":
        problem = "required, and not given"
        hint = f"add {top}=…{_meaning(role, top)}"
    elif not hint:
        source = role.__module__.replace(".", "/") + ".py"
        hint = f"{top}{_meaning(role, top) or f': see the class in {source}'}"
    return Mistake(inventory_line(), subject, _lower_first(problem), hint)


def _meaning(role: type[Role], setting: str) -> str:
    field = role.model_fields.get(setting)
    return f": {field.description}" if field and field.description else ""


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
