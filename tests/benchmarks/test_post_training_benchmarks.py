"""The benchmarks of post-training run, small, so that they cannot rot."""

import re

import pytest

from benchmarks import post_training


def test_the_quick_sections_print_their_tables(capsys: pytest.CaptureFixture[str]) -> None:
    post_training.main(["--quick", "--precision", "float32", "rollouts", "rewards"])
    said = capsys.readouterr().out
    rates = re.findall(r"\| (?:generate|ours), float32 \| ([\d,]+) \|", said)
    assert len(rates) == 2 and all(int(rate.replace(",", "")) > 0 for rate in rates)
    (integer,) = re.findall(r"\| math: an integer \| ([\d.]+) \|", said)
    assert 0 < float(integer) < 5
    with pytest.raises(SystemExit):
        post_training.main(["nonesuch"])
