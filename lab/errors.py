"""What the lab says when it cannot do what was asked."""


class LabError(Exception):
    """One line that says where and what, and a hint: a thing to type."""

    def __init__(self, problem: str, *, hint: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem}\nHINT: {self.hint}"
