"""Normal form in which short answers are compared, as upstream and the official VQA scorer define it."""

import re
from collections.abc import Mapping

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBER_WORDS: Mapping[str, str] = {"none": "0", **{word: str(n) for n, word in enumerate(_DIGITS.split())}}
_ARTICLES = frozenset(("a", "an", "the"))

# Their keys are these without the apostrophe. I'm, I've and I'd've never match, since text is lower-cased first.
_ONE_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
    I'm I've
"""
# Each has two keys: without the first, and without the second apostrophe.
_TWO_APOSTROPHES = """
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've I'd've
"""
_IRREGULAR = {
    "let's": "let's",
    "she's": "she's",
    "somebody'd": "somebodyd",  # reversed, as in the official table
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}


def _contractions() -> dict[str, str]:
    table = {word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()}
    for word in _TWO_APOSTROPHES.split():
        first, second = (place for place, sign in enumerate(word) if sign == "'")
        table[word[:first] + word[first + 1 :]] = word
        table[word[:second] + word[second + 1 :]] = word
    return table | _IRREGULAR


CONTRACTIONS: Mapping[str, str] = _contractions()


def normalise_answer(text: str) -> str:
    """Return the normal form of a short answer, for example `The cats, 1,000.` -> `cats 1000`."""
    return normalise_words(remove_punctuation(clean(text)))


def clean(text: str) -> str:
    """Lower-case a text, remove `,` and `?`, separate `'s`, and replace newlines and tabs by spaces."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return text.replace("\n", " ").replace("\t", " ")


def remove_punctuation(text: str) -> str:
    """Remove punctuation next to a space, replace other punctuation by a space; keep a period only before a digit."""
    number_with_commas = re.search(r"\d,\d", text) is not None
    result = text
    for sign in _PUNCTUATION:
        goes = f"{sign} " in text or f" {sign}" in text or number_with_commas
        result = result.replace(sign, "" if goes else " ")
    return re.sub(r"\.(?!\d)", "", result)


def normalise_words(text: str) -> str:
    """Lower-case words, write number words as digits, drop articles, restore apostrophes of contractions."""
    words = (_NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
