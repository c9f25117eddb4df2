"""The helpers of this folder assert too; show what differed. With DL2_COMPILED set its tests are of machine code."""

import os

import pytest

from dl2 import compiled

if os.environ.get("DL2_COMPILED"):
    assert compiled.prefer(), "there is no machine code of these sources: `dl2 compile` builds it"

pytest.register_assert_rewrite(*(f"tests.unit.scheduling.{name}" for name in ("cases", "dsl", "laws")))
