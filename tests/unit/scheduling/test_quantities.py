"""Quantities: Kubernetes' grammar and canonical printing, exact."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl2.scheduling.quantities import MAX, QuantityError, format_quantity, parse_quantity


@pytest.mark.parametrize(
    ("text", "resource", "value"),
    [
        ("4", "cpu", 4000),
        (4, "cpu", 4000),
        (0.5, "cpu", 500),
        ("500m", "cpu", 500),
        ("1500u", "cpu", 2),
        ("1n", "cpu", 1),
        ("0.1", "cpu", 100),
        (".5", "cpu", 500),
        ("2.", "cpu", 2000),
        ("+3", "cpu", 3000),
        ("1k", "cpu", 1_000_000),
        ("1e3", "cpu", 1_000_000),
        ("1E-3", "cpu", 1),
        (1e-07, "cpu", 1),
        ("0", "cpu", 0),
        ("-0", "cpu", 0),
        ("128Mi", "memory", 128 * 2**20),
        ("1Ki", "memory", 1024),
        ("1.5Gi", "memory", 3 * 2**29),
        ("1Ei", "memory", 2**60),
        ("1E", "memory", 10**18),
        ("2Pi", "memory", 2**51),
        ("3Ti", "memory", 3 * 2**40),
        ("129e6", "memory", 129_000_000),
        ("128974848000m", "memory", 128974848),
        ("1m", "memory", 1),
        ("8", "nvidia.com/gpu", 8),
        ("8000m", "nvidia.com/gpu", 8),
        ("110", "pods", 110),
        (str(MAX), "memory", MAX),
    ],
)
def test_parse(text, resource, value):
    assert parse_quantity(text, resource) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1 ",
        "k",
        ".",
        "1e",
        "1K",
        "1ki",
        "1ee3",
        "--1",
        "0x10",
        "1,5",
        "nan",
        "inf",
        "1e64",
        "1e-999999999",
        "9" * 65,
        "1_000",
        "١",
        True,
        None,
        [],
        float("nan"),
        float("inf"),
    ],
)
def test_what_is_no_quantity_is_refused_by_name(text):
    with pytest.raises(QuantityError, match="memory"):
        parse_quantity(text, "memory")


@pytest.mark.parametrize("text", ["-1", "-1m1", "-0.5Gi", -3])
def test_negative_quantities_are_refused(text):
    with pytest.raises(QuantityError):
        parse_quantity(text, "cpu")


@pytest.mark.parametrize("text", ["8Ei", "9.3E", 2**63, "1e40"])
def test_more_than_kubernetes_can_hold_is_refused(text):
    with pytest.raises(QuantityError, match="2\\^63-1"):
        parse_quantity(text, "memory")


@pytest.mark.parametrize(
    ("value", "resource", "text"),
    [
        (0, "cpu", "0"),
        (1, "cpu", "1m"),
        (1500, "cpu", "1500m"),
        (2000, "cpu", "2"),
        (2_000_000, "cpu", "2k"),
        (4, "nvidia.com/gpu", "4"),
        (1000, "nvidia.com/gpu", "1k"),
        (1500, "nvidia.com/gpu", "1500"),
        (2**30, "memory", "1Gi"),
        (3 * 2**29, "memory", "1536Mi"),
        (1000, "memory", "1k"),
        (1025, "memory", "1025"),
        (10**9, "memory", "1000000000"),
        (2**60, "ephemeral-storage", "1Ei"),
        (2**21, "hugepages-2Mi", "2Mi"),
        (-1500, "cpu", "-1500m"),
    ],
)
def test_format(value, resource, text):
    assert format_quantity(value, resource) == text


@given(st.integers(0, MAX), st.sampled_from(["cpu", "memory", "nvidia.com/gpu", "pods"]))
def test_what_is_printed_reads_back(value, resource):
    assert parse_quantity(format_quantity(value, resource), resource) == value


@given(
    st.integers(0, 10**6),
    st.integers(0, 999),
    st.sampled_from([("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6)]),
)
def test_parsing_rounds_up_and_loses_nothing(whole, thousandths, suffix):
    exact = (whole + Fraction(thousandths, 1000)) * Fraction(10) ** suffix[1]
    assert parse_quantity(f"{whole}.{thousandths:03}{suffix[0]}", "memory") == math.ceil(exact)


@pytest.mark.parametrize(
    ("text", "resource", "amount"),
    [("0.5", "nvidia.com/gpu", 0), ("1.5", "x", 1), ("0.0001", "cpu", 0), ("2", "x", 2)],
)
def test_a_limit_is_rounded_down(text, resource, amount):
    """What is asked for is rounded up, so that no limit lets in more than it says."""
    assert parse_quantity(text, resource, down=True) == amount
