"""Wrappers of ours come off again and leave what others have put there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainsanity.wrappers import Wrappers


class Stream:
    def write(self, text: str) -> str:
        return text


def around(original: Callable[[str], str], sign: str) -> Callable[[str], str]:
    return lambda text: sign + original(text)


def put(wrappers: Wrappers, stream: Any, sign: str) -> None:
    wrappers.put(stream, "write", around(stream.write, sign))


def test_takes_off_what_it_has_put() -> None:
    stream, wrappers = Stream(), Wrappers()
    put(wrappers, stream, "+")
    assert stream.write("a") == "+a"
    wrappers.take_off()
    assert stream.write("a") == "a"
    assert "write" not in vars(stream)
    assert not wrappers.on


def test_gives_back_the_wrapper_that_was_there_before() -> None:
    stream, outer, inner = Stream(), Wrappers(), Wrappers()
    put(outer, stream, "+")
    put(inner, stream, "-")
    inner.take_off()
    assert stream.write("a") == "+a"
    outer.take_off()
    assert stream.write("a") == "a"


def test_leaves_a_wrapper_that_was_put_over_ours() -> None:
    stream, wrappers = Stream(), Wrappers()
    put(wrappers, stream, "+")
    stream.write = around(stream.write, "*")
    wrappers.take_off()
    assert stream.write("a") == "*+a"
    wrappers.take_off()
    assert stream.write("a") == "*+a"


def test_takes_off_two_on_one_method() -> None:
    stream, wrappers = Stream(), Wrappers()
    put(wrappers, stream, "+")
    put(wrappers, stream, "-")
    wrappers.take_off()
    assert stream.write("a") == "a"
