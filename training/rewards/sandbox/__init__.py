"""Running code that a model wrote: confined by the kernel, judged from outside. See `sandbox` and `verdicts`."""

from training.rewards.sandbox.confinement import Limits
from training.rewards.sandbox.sandbox import Ended, Sandbox
from training.rewards.sandbox.verdicts import Verdict, check_calls, check_program, check_tests

__all__ = ["Ended", "Limits", "Sandbox", "Verdict", "check_calls", "check_program", "check_tests"]
