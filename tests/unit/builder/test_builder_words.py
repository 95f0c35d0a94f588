"""Variables, quotes and escapes in the words of a Dockerfile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet_agent.builder.words import BadWord, expand, expand_content, expand_words, split_words

VARIABLES = {"A": "one", "B": "two words", "EMPTY": "", "PATH_": "/usr/lib/x.tar.gz"}


@pytest.mark.parametrize(("text", "meant"), [
    ("plain", "plain"), ("$A", "one"), ("${A}x", "onex"), ("$Ax", ""), ("$A-b", "one-b"), ("'$A'", "$A"),
    ('"$A"', "one"), ('"${B}"', "two words"), (r"\$A", "$A"), (r'"\$A \" \\ \n"', r'$A " \ \n'), (r"a\ b", "a b"),
    ("${NO:-$A}", "one"), ("${EMPTY:-x}", "x"), ("${EMPTY-x}", ""), ("${NO-x}", "x"), ("${A:+set}", "set"),
    ("${EMPTY:+set}", ""), ("${EMPTY+set}", "set"), ("${NO:-${EMPTY:-deep}}", "deep"), ("${NO:-'}'}", "}"),
    ("${PATH_#*/}", "usr/lib/x.tar.gz"), ("${PATH_##*/}", "x.tar.gz"), ("${PATH_%.*}", "/usr/lib/x.tar"),
    ("${PATH_%%.*}", "/usr/lib/x"), ("${PATH_/lib/share}", "/usr/share/x.tar.gz"),
    ("${PATH_//r/R}", "/usR/lib/x.taR.gz"),
    ("$", "$"), ("a$", "a$"), ("$1x", "x"), ("$$", ""), ("100%", "100%"), ("a'b'\"c\"", "abc"), ("${A:?gone}", "one"),
])
def test_a_word_means(text: str, meant: str) -> None:
    assert expand(text, VARIABLES) == meant


@pytest.mark.parametrize(("text", "why"), [
    ("'open", "single-quote"), ('"open', "double-quote"), ('"open\\', "double-quote"), ("${A", "missing '}'"),
    ("${A:x}", "unsupported modifier"), ("${A!x}", "unsupported modifier"), ("${}", "bad substitution"),
    ("${NO:?is needed}", "NO: is needed"), ("${NO:-" * 60 + "}" * 60, "nested too deeply"),
])
def test_a_broken_word_is_named(text: str, why: str) -> None:
    with pytest.raises(BadWord, match=why):
        expand(text, VARIABLES)


def test_the_other_escape_character_leaves_backslashes_alone() -> None:
    assert expand(r"c:\dir`$A", VARIABLES, "`") == r"c:\dir$A"


def test_blanks_separate_words_unless_they_are_quoted() -> None:
    assert expand_words("a $B \"$B\" 'c d' e\\ f ''", VARIABLES) == ["a", "two", "words", "two words", "c d", "e f", ""]
    assert split_words("a=\"b c\" d='e f' g\\ h") == ['a="b c"', "d='e f'", "g\\ h"]


def test_a_here_document_keeps_its_quotes() -> None:
    assert expand_content("'$A' \"${B}\" \\$A \\n\n", VARIABLES) == "'one' \"two words\" $A \\n\n"


@given(st.text())
def test_any_text_is_expanded_or_refused(text: str) -> None:
    try:
        expand(text, VARIABLES)
        expand_words(text, VARIABLES)
    except BadWord as err:
        assert str(err)


@given(st.text(st.characters(blacklist_characters="'", blacklist_categories=["Cs"])))
def test_what_is_in_single_quotes_is_itself(text: str) -> None:
    assert expand(f"'{text}'", VARIABLES) == text
    assert expand_words(f"'{text}'", VARIABLES) == [text]


@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_values_of_variables_are_not_read_again(value: str) -> None:
    assert expand("$V", {"V": value}) == value
