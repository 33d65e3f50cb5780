# ruff: noqa: E501  (the word lists are read as tables, one row an activity)
"""Yoruba: preverbal markers of tense, plural by àwọn, and fully written tones."""

from collections.abc import Iterator
from itertools import permutations, product

from comet.toy.grammar import Language, activity, finish, people, when, words

_MARKER = {"past": "", "present": "ń ", "future": "yóò ", "not": "kò "}
_SUBJECT_WHY = {"one": "ó", "many": "wọ́n", "we": "a"}

_OWNERS = words("àgbẹ̀, àwọn àgbẹ̀, darandaran, oníṣòwò, bàbá, ìyá àgbà")
_OWNED = words("màlúù, ewúrẹ́, àgùntàn, adìyẹ, ìwé, àga, ilé, oko")
_NUMBERS = words("méjì, mẹ́ta, mẹ́rin, márùn-ún, mẹ́fà, méje, mẹ́jọ, mẹ́wàá")
_QUALITIES = (  # nouns; a quality; its opposite
    ("ilé, oko, ọjà, igi, ìlú", "tóbi", "kéré"),
    ("igi, ilé, ògiri", "ga", "kúrú"),
    ("ọ̀nà, okùn, odò", "gùn", "kúrú"),
    ("ìwé, aṣọ, iṣẹ́, ilé", "dára", "burú"),
    ("ẹrù, àpótí, òkúta, àga", "wúwo", "fúyẹ́"),
    ("omi, oúnjẹ, tíì, ọbẹ̀", "gbóná", "tutù"),
)


class Yoruba(Language):
    """Yoruba (yor); low-toned verbs stand in the mid-toned form they take before a noun object."""

    but = ", ṣùgbọ́n "
    destinations = words("sí ọjà, sí ilé, sí ìlú, sí ilé ìwé, sí oko")
    times = when(
        past="lánàá, lọ́sẹ̀ tó kọjá, lóṣù tó kọjá, lọ́dún tó kọjá",
        present="lónìí, báyìí, ní àárọ̀ yìí",
        future="lọ́la, lọ́sẹ̀ tó ń bọ̀, lóṣù tó ń bọ̀, lọ́dún tó ń bọ̀",
    )
    agreement = people(
        we="a",
        one="""ọmọdé, àlejò, bàbá, ìyá, ìyá àgbà, alásè, akẹ́kọ̀ọ́, olùkọ́, òǹkọ̀wé, akọ̀ròyìn, àgbẹ̀,
            darandaran, apẹja, oníṣòwò, dókítà, nọ́ọ̀sì, aránṣọ, kọ́lékọ́lé, awakọ̀, ọlọ́pàá, akọrin,
            ọmọbìnrin, agbábọ́ọ̀lù, obìnrin, ọkùnrin, Adé, Bọ́lá, Títí, Kẹ́hìndé""",
        many="""àwọn ọmọdé, àwọn àlejò, àwọn àgbàlagbà, àwọn alásè, àwọn akẹ́kọ̀ọ́, àwọn olùkọ́, àwọn òǹkọ̀wé,
            àwọn akọ̀ròyìn, àwọn àgbẹ̀, àwọn darandaran, àwọn apẹja, àwọn oníṣòwò, àwọn dókítà, àwọn nọ́ọ̀sì,
            àwọn aránṣọ, àwọn kọ́lékọ́lé, àwọn awakọ̀, àwọn akọrin, àwọn ọmọbìnrin, àwọn ọmọkùnrin,
            àwọn agbábọ́ọ̀lù, àwọn obìnrin, wọ́n""",
    )
    activities = (
        activity("jẹ", "ọmọdé, àwọn ọmọdé, àlejò, àwọn àlejò, a", "ìrẹsì àti ẹ̀wà, iyán àti ọbẹ̀, ẹja àti iṣu, èso, ẹran",
                 "nílé, nílé oúnjẹ, lábẹ́ igi", "kí {s} lè ní okun"),
        activity("mu", "àlejò, àwọn àgbàlagbà, àwọn agbábọ́ọ̀lù, Adé, wọ́n", "omi tútù, tíì, ọtí ẹmu, wàrà, ẹ̀kọ gbígbóná",
                 "nílé, lọ́jà, nílé oúnjẹ", "kí {s} lè pa òùngbẹ"),
        activity("se", "ìyá, ìyá àgbà, alásè, àwọn alásè, Títí", "ìrẹsì, ọbẹ̀ ẹ̀gúsí, ẹ̀wà, iṣu, ẹran",
                 "nílé ìdáná, nílé, nílé oúnjẹ", "kí {s} lè bọ́ ìdílé"),
        activity("ka", "akẹ́kọ̀ọ́, àwọn akẹ́kọ̀ọ́, olùkọ́, Bọ́lá, a", "ìwé ìtàn, ìwé ìròyìn, lẹ́tà, ewì, ìtàn kúkurú",
                 "ní yàrá ìkàwé, nílé ìwé, ní kíláàsì", "kí {s} lè yege ìdánwò"),
        activity("kọ", "òǹkọ̀wé, àwọn òǹkọ̀wé, akọ̀ròyìn, àwọn akọ̀ròyìn", "ìwé, lẹ́tà, ìròyìn, ewì, ìtàn",
                 "lọ́fíìsì, nílé, ní yàrá ìkàwé", "kí {s} lè sọ òtítọ́"),
        activity("gbin", "àgbẹ̀, àwọn àgbẹ̀, bàbá, Kẹ́hìndé", "àgbàdo, iṣu, ẹ̀gẹ́, ẹ̀wà, kòkó",
                 "lóko, ní abúlé, létí odò", "kí {s} lè kórè dáadáa"),
        activity("da", "darandaran, àwọn darandaran, ọkùnrin, àwọn ọmọkùnrin", "màlúù, ewúrẹ́, àgùntàn, ẹran ọ̀sìn",
                 "nínú igbó, lórí òkè, létí odò", "kí {s} lè rí wàrà"),
        activity("pa", "apẹja, àwọn apẹja, àwọn ọmọkùnrin, bàbá", "ẹja, ẹja ńlá, edé, akàn",
                 "lódò, nínú òkun, lójú ọ̀sà", "kí {s} lè tà á lọ́jà"),
        activity("ta", "oníṣòwò, àwọn oníṣòwò, ìyá, Títí", "aṣọ, bàtà, ẹ̀fọ́, èso, ọṣẹ",
                 "lọ́jà, ní ṣọ́ọ̀bù, nílùú", "kí {s} lè jèrè"),
        activity("ra", "obìnrin, àwọn obìnrin, àwọn àlejò, Adé, wọ́n", "aṣọ tuntun, bàtà tuntun, fóònù tuntun, búrẹ́dì, ṣúgà",
                 "ní ṣọ́ọ̀bù, lọ́jà, nílùú", "kí {s} lè ṣe ọdún"),
        activity("kọ́ àwọn ọmọ ní", "olùkọ́, àwọn olùkọ́, Bọ́lá", "ìṣirò, ìtàn, èdè Yorùbá, sáyẹ́ǹsì, orin",
                 "nílé ìwé, ní kíláàsì, ní abúlé", "kí wọ́n lè ní ìmọ̀"),
        activity("tọ́jú", "dókítà, àwọn dókítà, nọ́ọ̀sì, àwọn nọ́ọ̀sì", "àwọn aláìsàn, ọmọ tó ń ṣàìsàn, àwọn àgbàlagbà, àwọn aboyún",
                 "nílé ìwòsàn, ní abúlé, nílùú", "kí {s} lè gba ẹ̀mí là"),
        activity("rán", "aránṣọ, àwọn aránṣọ, ìyá àgbà, Títí", "aṣọ, ṣòkòtò, fìlà, aṣọ ilé ìwé, bùbá",
                 "ní ṣọ́ọ̀bù, nílé, lọ́jà", "kí {s} lè rí owó"),
        activity("kọ́", "kọ́lékọ́lé, àwọn kọ́lékọ́lé, ọkùnrin, a", "ilé, afárá, ilé ìwé, ilé ìwòsàn, ògiri",
                 "ní abúlé, nílùú, létí odò", "kí àwọn ènìyàn lè gbé dáadáa"),
        activity("wa", "awakọ̀, àwọn awakọ̀, ọlọ́pàá, Kẹ́hìndé", "ọkọ̀ ayọ́kẹ́lẹ́, ọkọ̀ akérò, ọkọ̀ ńlá, ọ̀kadà, bọ́ọ̀sì",
                 "lójú ọ̀nà, nílùú, ní abúlé", "kí {s} lè gbé èrò lọ sílé"),
        activity("kọ", "akọrin, àwọn akọrin, Bọ́lá, àwọn ọmọbìnrin", "orin tuntun, orin ìyìn, orin ìgbéyàwó, orin ìbílẹ̀",
                 "ní ṣọ́ọ̀ṣì, níbi ìgbéyàwó, nílé ìwé", "kí {s} lè mú inú àwọn ènìyàn dùn"),
        activity("fọ", "ìyá, ọmọbìnrin, àwọn ọmọbìnrin, obìnrin", "aṣọ, aṣọ ilé ìwé, aṣọ ìbora, ṣòkòtò",
                 "lódò, nílé, nídìí kànga", "kí {s} lè wọ aṣọ mímọ́"),
        activity("gbá", "agbábọ́ọ̀lù, àwọn agbábọ́ọ̀lù, àwọn ọmọdé, àwọn ọmọkùnrin", "bọ́ọ̀lù, bọ́ọ̀lù aláfẹsẹ̀gbá, bọ́ọ̀lù ọwọ́, bọ́ọ̀lù alájùsáwọ̀n",
                 "ní pápá ìṣeré, nílé ìwé, ní àdúgbò", "kí {s} lè borí"),
    )  # fmt: skip

    def clause(self, agent: str, verb: str, tense: str, thing: str) -> str:
        """Ìyá se ìrẹsì; àwọn àgbẹ̀ yóò gbin àgbàdo; wọ́n is wọn before yóò and kò."""
        subject = "wọn" if agent == "wọ́n" and tense in ("future", "not") else agent
        return f"{subject} {_MARKER[tense]}{verb} {thing}"

    def who(self, verb: str, tense: str, thing: str) -> str:
        """Ta ni ó se ìrẹsì, and then place and time."""
        resumed = "" if tense == "future" else "ó "
        return f"ta ni {resumed}{_MARKER[tense]}{verb} {thing}"

    def afterwards(self, agent: str, verb: str, thing: str, destination: str) -> str:
        """Lẹ́yìn tí ìyá se ìrẹsì tán, ó lọ sí ọjà."""
        pronoun = _SUBJECT_WHY[self.agreement[agent]]
        return f"lẹ́yìn tí {self.clause(agent, verb, 'past', thing)} tán, {pronoun} lọ {destination}"

    def purpose(self, agent: str, purpose: str) -> str:
        """Kí ó lè for one, kí wọ́n lè for many."""
        return purpose.format(s=_SUBJECT_WHY[self.agreement[agent]])

    def facts(self) -> Iterator[str]:
        """What people own, and qualities with their opposites."""
        for owner, (first, second) in product(_OWNERS, permutations(_OWNED, 2)):
            for number, other in zip(_NUMBERS, _NUMBERS[3:] + _NUMBERS[:3], strict=True):
                yield finish(f"{owner} ní {first} {number} àti {second} {other}")
        for nouns, good, bad in _QUALITIES:
            for noun in words(nouns):
                yield finish(f"{noun} yìí {good} ṣùgbọ́n {noun} yẹn {bad}")
                yield finish(f"{noun} yìí {bad} ṣùgbọ́n {noun} yẹn {good}")
