"""What every test shares: one torch thread, no hub, quiet progress."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from curation.progress import set_progress_mode

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    set_progress_mode("quiet")
