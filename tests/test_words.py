"""Kinds of words, by hand and as laws."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faithlab.words import STOP_WORDS, content_words, shares


def test_shares_by_hand():
    # ten pieces: the full stop is a symbol; So and has are stop words
    assert shares("So Ben has 3 + 4.5 = 7 pears.") == pytest.approx(dict(numbers=0.3, symbols=0.3, stop_words=0.2))
    assert shares("1,200") == dict(numbers=1.0, symbols=0.0, stop_words=0.0)
    assert all(math.isnan(v) for v in shares("  \n").values())


@given(st.text())
def test_shares_are_shares(text):
    found = shares(text)
    if text.strip():
        assert all(0 <= v <= 1 for v in found.values()) and sum(found.values()) <= 1 + 1e-9


@given(st.lists(st.sampled_from(["7", "+", "the", "pears"]), min_size=1))
def test_shares_do_not_depend_on_order(pieces):
    assert shares(" ".join(pieces)) == pytest.approx(shares(" ".join(sorted(pieces))))


def test_stop_words_carry_no_content():
    assert content_words(" ".join(STOP_WORDS)) == set()


def test_a_number_is_one_content_word():
    assert content_words("Ben has 3.5 m of 1,200 m.") == {"ben", "3.5", "m", "1,200"}
