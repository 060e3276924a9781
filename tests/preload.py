"""What the server of ``process.py`` imports before its first fork."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

# There is a package of this name in the site-packages of some installations, which would be found first.
tests = ModuleType("tests")
tests.__path__ = [str(Path(__file__).parent)]
sys.modules["tests"] = tests
importlib.import_module("tests.process")
