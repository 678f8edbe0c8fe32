"""A terminal shows our sentences, and not what a library could not load for another machine."""

import logging
import subprocess
import sys

import pytest

import recipes.cli
from curation.quiet_libraries import TALKATIVE, quiet_import, quiet_libraries


def test_loading_transformers_models_says_nothing() -> None:
    pytest.importorskip("torchao", reason="torchao, which talks, is not installed")
    code = "from curation.quiet_libraries import *; quiet_libraries(); import transformers.quantizers.auto"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_commands_make_libraries_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TALKATIVE:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    recipes.cli._main(quiet=False, plain=False)
    assert not any(logging.getLogger(name).isEnabledFor(logging.WARNING) for name in TALKATIVE)


def test_an_import_is_quiet_and_what_follows_is_not(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("mixwright.example")
    with pytest.raises(ImportError), quiet_import():
        logger.warning("not for the user")
        raise ImportError
    logger.warning("for the user")
    assert [record.message for record in caplog.records] == ["for the user"]
    quiet_libraries()
    assert logger.isEnabledFor(logging.WARNING)
