"""A repository and its runs agree with plain dictionaries, whatever is done to them and whoever is killed.

Two hundred steps, the same every time; ``python -m tests.torture --only machine`` takes others.
"""

from __future__ import annotations

from tests.torture.machine import SETTINGS, Training

TestTraining = Training.TestCase
TestTraining.settings = SETTINGS
