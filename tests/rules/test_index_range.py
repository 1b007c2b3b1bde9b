"""Ids and labels beyond what they are looked up in."""

import pytest

from trainsanity.rules import NotTestable, RunFacts, Severity, history
from trainsanity.rules.index_range import IndexRange


def ids(most, least=0.0, size=100.0, not_whole=None, **more):
    words = {"id_max": most, "id_min": least, "input_dim": size}
    words |= {} if not_whole is None else {"not_whole": not_whole}
    signals = {f"embedding:words/{word}": [value] * 3 for word, value in words.items()}
    return judge(signals, **more)


def labels(most, least=0.0, classes=10.0):
    signals = {"labels/max": [most] * 3, "labels/min": [least] * 3, "labels/classes": [classes] * 3}
    return judge(signals)


def judge(signals, facts=None, audits=()):
    return list(IndexRange().check(history(signals, facts=facts, audits=audits).view()))


class TestIds:
    def test_the_last_row_is_in_range(self):
        assert not ids(99.0)

    def test_one_beyond_is_critical_and_names_the_layer(self):
        (found,) = ids(100.0)
        assert found.severity is None
        assert found.subject == "words"
        assert "100 rows, for ids 0 to 99" in found.message
        assert "at least 101" in found.suggestion

    def test_under_xla_they_share_the_last_row(self):
        compiled = ("compile", 0, {"jit_compile": True})
        (found,) = ids(130.0, facts=RunFacts(backend="tensorflow"), audits=[compiled])
        assert "read the last row, 99" in found.message

    def test_on_jax_they_are_nan(self):
        (found,) = ids(130.0, facts=RunFacts(backend="jax"))
        assert "NaN" in found.message

    def test_the_share_of_the_ids_is_told(self):
        signals = {f"embedding:words/{w}": [v] for w, v in {"id_max": 130.0, "id_min": 0.0}.items()}
        signals |= {"embedding:words/input_dim": [100.0], "embedding:words/out_of_range": [0.07]}
        (found,) = judge(signals)
        assert "7 %" in found.message

    def test_ids_that_are_cut_off_are_a_warning(self):
        (found,) = ids(3.0, not_whole=0.9)
        assert found.severity is Severity.WARNING
        assert "90 % of all" in found.message
        assert not ids(3.0, not_whole=0.0)

    def test_negative_ids_may_be_meant(self):
        (found,) = ids(50.0, least=-1.0)
        assert found.severity is Severity.WARNING
        assert "-1 reads row 99" in found.message

    def test_ids_below_the_whole_table_are_beyond_it(self):
        (found,) = ids(50.0, least=-101.0)
        assert found.severity is None

    def test_a_table_too_large_for_float32_is_given_its_rounding(self):
        size = 2.0**25
        assert not ids(size, size=size)
        assert ids(size + 16, size=size)


class TestLabels:
    def test_the_last_class_is_in_range(self):
        assert not labels(9.0)

    def test_one_beyond_is_critical(self):
        (found,) = labels(10.0)
        assert found.subject == "labels"
        assert found.severity is None

    def test_a_negative_label_is_a_warning(self):
        (found,) = labels(9.0, least=-1.0)
        assert found.severity is Severity.WARNING

    def test_one_column_is_no_list_of_classes(self):
        assert not labels(1.0, classes=1.0)


def test_is_not_testable_without_anything_to_look_up():
    with pytest.raises(NotTestable, match="no embedding"):
        judge({"loss/reported": [1.0]})
