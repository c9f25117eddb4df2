"""docs/api.md says what the definitions say."""

from pathlib import Path

from dl2.api.reference import reference

PAGE = Path(__file__).parents[3] / "docs" / "api.md"


def test_the_reference_page_is_in_step_with_the_definitions() -> None:
    assert PAGE.read_text() == reference(), "run: python -m dl2.api.reference > docs/api.md"


def test_the_reference_tells_fields_rules_and_columns() -> None:
    page = reference()
    for line in (
        "| `members[].count` (required) | integer 1..10000 | The most pods it may have. |",
        "- `spec.topology` has both required and preferred; keep one of them",
        "prints Parent, Weight, Pending, Admitted, Used/Share, Age.",
    ):
        assert line in page
