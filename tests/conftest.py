"""Fixtures of all tests: a fleet, and plan(): what a deploy would do to a host, without a host."""

# pyinfra's connections are greenlets; its sockets and locks must be patched before anything else.
from gevent import monkey  # isort: skip

monkey.patch_all()  # isort: skip

import pytest

pytest.register_assert_rewrite("tests.certificates", "tests.planning")

from fleet.observe import Seen
from tests.planning import make_plan
from tests.samples import sample_authority, sample_fleet


def pytest_addoption(parser):
    parser.addoption(
        "--write-rendered",
        action="store_true",
        help="write tests/rendered/ anew, to be reviewed by `git diff tests/rendered`",
    )
    parser.addoption("--inventory", help="the deployed fleet that tests/verify/ looks at")


@pytest.fixture
def authority(tmp_path):
    """A CA directory whose files are fixed, so that what is made of them stays the same."""
    return sample_authority(tmp_path / "ca")


@pytest.fixture
def fleet(authority):
    """One PEM server, two poolers, three agents."""
    return sample_fleet(authority)


@pytest.fixture
def plan(fleet, monkeypatch):
    """plan(deploy, host, facts): see tests/planning.py. of: another fleet than the usual one."""
    # A host's answers, and what was told of it, are remembered for a run; each test is one.
    monkeypatch.setattr("fleet.observe._last", Seen(None, {}, 0.0, 0.0))
    monkeypatch.setattr("fleet.asking._families", {})
    monkeypatch.setattr("fleet.operations.commands._told", set())

    def plan(deploy, host, facts, /, of=fleet, **arguments):
        return make_plan(of, deploy, host, facts, **arguments)

    return plan
