"""Build the stand-in packages by hand: `.venv/bin/python -m lab.standin`."""

import os
import sys
from pathlib import Path

from lab.standin.build import BuildError, build_repository

root = Path(os.environ.get("LAB_ROOT", "/var/lib/pem-fleet-lab"))
try:
    key_file = build_repository(root)
except (BuildError, PermissionError) as error:
    sys.exit(f"{error}")
sys.stdout.write(f"{key_file.parent / 'deb'}, signed with the key of {key_file}\n")
