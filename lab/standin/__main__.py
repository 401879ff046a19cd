"""Build the stand-in packages by hand: `.venv/bin/python -m lab.standin`."""

import sys

from lab.errors import LabError
from lab.hosts import current_lab
from lab.standin.build import build_repository

try:
    key_file = build_repository(current_lab().root)
except LabError as error:
    sys.exit(f"{error}")
sys.stdout.write(f"{key_file.parent / 'deb'}, signed with the key in {key_file}\n")
