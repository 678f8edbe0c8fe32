"""Mid-training compression (MobileLLM-R1, section 6): keep what helps, mix, train, score again."""

from mixing.compression.compress import compress
from mixing.compression.rounds import Round, Stop
from mixing.compression.settings import CompressionSettings

__all__ = ["CompressionSettings", "Round", "Stop", "compress"]
