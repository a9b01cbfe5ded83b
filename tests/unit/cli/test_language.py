"""The command line in the reader's language: help, panels, errors."""

import pytest

from support.command import weitiao
from support.messages import catalogue
from weitiao.core.messages import translate


def test_help_is_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEITIAO_LANG", "zh")
    code, said = weitiao("train", "--help")
    assert code == 0 and translate("Resume an interrupted run folder.") in said and translate("Options") in said
    code, said = weitiao("explain", "train.epochs")
    assert code == 0 and catalogue()["Passes over the data."] in said


def test_errors_are_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEITIAO_LANG", "zh")
    code, said = weitiao("explain", "train.epoch")
    expected = translate("there is no key or component {key!r}.{hint}").partition("{")[0]
    assert code == 2 and expected in said
