# ruff: noqa: E501  (the word lists are read as tables, one row an activity)
"""Igbo: vowel harmony in prefixes, suffixes and the third-person pronoun."""

from collections.abc import Iterator
from itertools import permutations, product

from comet.toy.grammar import Language, activity, finish, people, when, words

_VOWELS = "aeiịoọuụ"
_HEAVY = "aịọụ"  # a verb's vowels come from one of two sets; the other is e, i, o, u

_OWNERS = words("onye ọrụ ugbo, ndị ọrụ ugbo, onye ahịa, nna, nne, Chidi")
_OWNED = words("ehi, ewu, atụrụ, ọkụkọ, akwụkwọ, oche, ụlọ, ugbo")
_NUMBERS = words("abụọ, atọ, anọ, ise, isii, asaa, asatọ, iri")
_QUALITIES = (  # nouns; a quality; its opposite
    ("ụlọ, ugbo, ahịa, osisi", "buru ibu", "pere mpe"),
    ("osisi, ụzọ, eriri, mma", "toro ogologo", "dị mkpụmkpụ"),
    ("akwụkwọ, akwa, ụgbọala, oche", "dị ọhụrụ", "dị ochie"),
    ("nri, mmiri, akwụkwọ, ụzọ", "dị mma", "dị njọ"),
    ("mmiri, nri, tii, ofe", "dị ọkụ", "jụrụ oyi"),
    ("akwa, ewu, ọkụkọ, ụlọ", "dị ọcha", "dị ojii"),
)


def _heavy(verb: str) -> bool:
    return next(letter for letter in verb if letter in _VOWELS) in _HEAVY


def _past(verb: str) -> str:
    """The suffix -r repeats the verb's last vowel: riri, gụrụ, dere."""
    return f"{verb}r{verb[-1]}"


def _prefixed(verb: str) -> str:
    """The prefix a- or e- of the participle: agụ, eri."""
    return ("a" if _heavy(verb) else "e") + verb


class Igbo(Language):
    """Igbo (ibo)."""

    but = ", mana "
    destinations = words("ahịa, ụlọ, ụlọ akwụkwọ, obodo, ugbo")
    times = when(
        past="ụnyaahụ, n'izu gara aga, n'ọnwa gara aga, n'afọ gara aga",
        present="taa, ugbu a, n'ụtụtụ a",
        future="echi, n'izu na-abịa, n'ọnwa na-abịa, n'afọ na-abịa",
    )
    agreement = people(
        one="""nwata, nwoke, nwaanyị, nne, nna, onye ọbịa, onye nkuzi, nwa akwụkwọ, odee akwụkwọ, onye nta akụkọ,
            onye ọrụ ugbo, onye ọzụzụ anụ, onye ọkụ azụ, onye ahịa, dọkịta, nọọsụ, onye ọkwa akwa,
            onye ọrụ ụlọ, onye ọkwọ ụgbọala, onye ọbụ abụ, onye egwuregwu, nne nne, nwa agbọghọ, Chidi, Ngozi,
            Emeka, Adaeze""",
        many="""ụmụaka, ụmụ nwoke, ụmụ nwaanyị, ndị ọbịa, ndị nkuzi, ụmụ akwụkwọ, ndị odee akwụkwọ,
            ndị nta akụkọ, ndị ọrụ ugbo, ndị ọzụzụ anụ, ndị ọkụ azụ, ndị ahịa, ndị dọkịta, ndị nọọsụ,
            ndị ọkwa akwa, ndị ọrụ ụlọ, ndị ọkwọ ụgbọala, ndị ọbụ abụ, ndị egwuregwu, ụmụ agbọghọ, ndị agadi, ha, anyị""",
        pronoun="ọ",
    )
    activities = (
        activity("ri", "nwata, ụmụaka, ndị ọbịa, ọ, anyị", "nri ụtụtụ, ji na akwụkwọ nri, osikapa, agwa, anụ",
                 "n'ụlọ, n'ụlọ oriri, n'okpuru osisi", "ka {s} nwee ike"),
        activity("ṅụ", "onye ọbịa, ndị agadi, ndị egwuregwu, nwoke, ha", "mmiri oyi, tii, mmanya nkwụ, mmiri ara ehi, akamụ",
                 "n'ụlọ, n'ahịa, n'ụlọ oriri", "n'ihi akpịrị ịkpọ nkụ"),
        activity("si", "nne, nne nne, ụmụ nwaanyị, Ngozi", "osikapa, ofe egusi, agwa, ji, azụ",
                 "n'usekwu, n'ụlọ, n'ụlọ oriri", "ka {s} nye ezinụlọ nri"),
        activity("gụ", "nwa akwụkwọ, ụmụ akwụkwọ, onye nkuzi, ọ, anyị", "akwụkwọ akụkọ, akwụkwọ nsọ, akwụkwọ ozi, akụkọ ihe mere eme",
                 "n'ọba akwụkwọ, n'ụlọ akwụkwọ, n'ụlọ", "ka {s} merie n'ule"),
        activity("de", "odee akwụkwọ, ndị odee akwụkwọ, onye nta akụkọ, ọ", "akwụkwọ ozi, akwụkwọ, akụkọ, abụ ọhụrụ",
                 "n'ụlọ ọrụ, n'ụlọ, n'ọba akwụkwọ", "ka {s} mee ka ọha mara"),
        activity("kọ", "onye ọrụ ugbo, ndị ọrụ ugbo, nna, Emeka", "ji, ọka, akpụ, agwa, ede",
                 "n'ugbo, n'ubi, n'akụkụ osimiri", "ka {s} nweta ihe ubi"),
        activity("zụ", "onye ọzụzụ anụ, ndị ọzụzụ anụ, nwoke, ụmụ nwoke", "ehi, ewu, atụrụ, ọkụkọ",
                 "n'ọhịa, n'ugbo, n'akụkụ osimiri", "ka {s} nweta anụ"),
        activity("kụ", "onye ọkụ azụ, ndị ọkụ azụ, ụmụ nwoke", "azụ, nnukwu azụ, azụ ndụ, obere azụ",
                 "n'osimiri, n'ọdọ mmiri, n'oké osimiri", "ka {s} ree n'ahịa"),
        activity("re", "onye ahịa, ndị ahịa, nwaanyị, Ngozi", "akwa, akpụkpọ ụkwụ, akwụkwọ nri, mkpụrụ osisi, ncha",
                 "n'ahịa, n'ụlọ ahịa, n'obodo", "ka {s} nweta uru"),
        activity("zụta", "nwaanyị, ụmụ nwaanyị, ndị ọbịa, Chidi, ọ", "akwa ọhụrụ, akpụkpọ ụkwụ ọhụrụ, ekwentị ọhụrụ, achịcha, shuga",
                 "n'ụlọ ahịa, n'ahịa, n'obodo", "ka {s} mee emume"),
        activity("kụzi", "onye nkuzi, ndị nkuzi, Adaeze, ha", "mgbakọ na mwepụ, akụkọ ihe mere eme, asụsụ Igbo, sayensị",
                 "n'ụlọ akwụkwọ, na mahadum, n'obodo", "ka ụmụ akwụkwọ ghọta ihe"),
        activity("gwọ", "dọkịta, ndị dọkịta, nọọsụ, ndị nọọsụ", "ndị ọrịa, ụmụaka na-arịa ọrịa, ndị merụrụ ahụ, ndị agadi",
                 "n'ụlọ ọgwụ, n'obodo, n'ụlọ", "ka {s} zere ọnwụ ha"),
        activity("kwa", "onye ọkwa akwa, ndị ọkwa akwa, nne nne, nwa agbọghọ", "akwa, uwe, uwe ụlọ akwụkwọ, okpu",
                 "n'ụlọ ahịa, n'ụlọ, n'ahịa", "ka {s} nweta ego"),
        activity("wu", "onye ọrụ ụlọ, ndị ọrụ ụlọ, anyị, ụmụ nwoke", "ụlọ, àkwà mmiri, ụlọ akwụkwọ, ụlọ ọgwụ, ụka",
                 "n'obodo, n'ime obodo, n'akụkụ osimiri", "ka ndị mmadụ biri nke ọma"),
        activity("kwọ", "onye ọkwọ ụgbọala, ndị ọkwọ ụgbọala, Emeka, nwoke", "ụgbọala, bọs, nnukwu ụgbọala, ọgba tum tum",
                 "n'okporo ụzọ, n'obodo, n'ime obodo", "ka {s} bute ndị njem"),
        activity("bụ", "onye ọbụ abụ, ndị ọbụ abụ, Adaeze, ụmụaka", "abụ ọhụrụ, abụ ọdịnala, abụ agbamakwụkwọ, abụ ụka",
                 "n'ụlọ ụka, n'agbamakwụkwọ, n'ụlọ akwụkwọ", "ka {s} mee ndị mmadụ obi ụtọ"),
        activity("sa", "nne, nwa agbọghọ, ụmụ agbọghọ, ụmụ nwaanyị", "akwa, uwe, uwe ụlọ akwụkwọ, akwa ndina",
                 "n'iyi, n'ụlọ, n'akụkụ osimiri", "ka {s} yiri akwa dị ọcha"),
        activity("gba", "onye egwuregwu, ndị egwuregwu, ụmụaka, ha", "bọọlụ, bọọlụ ukwu, bọọlụ nkata, egwu",
                 "n'ama egwuregwu, n'ụlọ akwụkwọ, n'obodo", "ka {s} nwee obi ụtọ"),
    )  # fmt: skip

    def clause(self, agent: str, verb: str, tense: str, thing: str) -> str:
        """Nne siri osikapa; ndị nkuzi na-akụzi sayensị; the pronoun is o or ọ, as the verb asks."""
        pronoun = self.agreement[agent] == "pronoun"
        subject = agent
        if pronoun and tense in ("past", "not") and not _heavy(verb):
            subject = "o"
        if tense == "past":
            return f"{subject} {_past(verb)} {thing}"
        if tense == "not":
            return f"{subject} {verb if pronoun else _prefixed(verb)}ghị {thing}"
        return f"{subject} {'na' if tense == 'present' else 'ga'}-{_prefixed(verb)} {thing}"

    def who(self, verb: str, tense: str, thing: str) -> str:
        """Kedu onye siri osikapa, and then place and time."""
        form = (
            _past(verb)
            if tense == "past"
            else f"{'na' if tense == 'present' else 'ga'}-{_prefixed(verb)}"
        )
        return f"kedu onye {form} {thing}"

    def afterwards(self, agent: str, verb: str, thing: str, destination: str) -> str:
        """Nne siri osikapa wee gaa ahịa."""
        return f"{self.clause(agent, verb, 'past', thing)} wee gaa {destination}"

    def purpose(self, agent: str, purpose: str) -> str:
        """Ka o nweta for one, ka ha nweta for many; every purpose starts with a verb of the o set."""
        many = {"anyị": "anyị"}.get(agent, "ha")
        return purpose.format(s=many if self.agreement[agent] == "many" else "o")

    def facts(self) -> Iterator[str]:
        """What people own, and qualities with their opposites."""
        for owner, (first, second) in product(_OWNERS, permutations(_OWNED, 2)):
            for number, other in zip(_NUMBERS, _NUMBERS[3:] + _NUMBERS[:3], strict=True):
                yield finish(f"{owner} nwere {first} {number} na {second} {other}")
        for nouns, good, bad in _QUALITIES:
            for noun in words(nouns):
                yield finish(f"{noun} a {good} mana {noun} ahụ {bad}")
                yield finish(f"{noun} a {bad} mana {noun} ahụ {good}")
