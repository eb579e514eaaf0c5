"""The public names of the package, which are imported when they are first used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from imgsearch import evaluation


def test_every_public_name_is_there():
    assert all(getattr(evaluation, name) is not None for name in evaluation.__all__)
    assert dir(evaluation) == evaluation.__all__
    with pytest.raises(AttributeError, match="no attribute 'unicorn'"):
        _ = evaluation.unicorn


def test_importing_the_package_imports_none_of_its_modules():
    code = "import sys, imgsearch.evaluation; print([m for m in sys.modules if 'numpy' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
