"""The helpers of this folder assert too; show what differed."""

import pytest

pytest.register_assert_rewrite(*(f"tests.unit.scheduling.{name}" for name in ("cases", "dsl", "laws")))
