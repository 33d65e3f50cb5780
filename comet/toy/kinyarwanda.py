# ruff: noqa: E501  (the word lists are read as tables, one row an activity)
"""Kinyarwanda: subject prefixes, perfect stems and noun-class agreement, third person throughout."""

from collections.abc import Iterator
from itertools import permutations

from comet.toy.grammar import Language, activity, finish, people, when, words

_VOWELS = "aeiou"
_VOICELESS = "pfkcsth"  # the infinitive's ku is voiced to gu before these (Dahl's law)
_PREFIX = {
    "one": {"past": "ya", "present": "ara", "future": "aza", "not": "ntiya", "who": "wa"},
    "many": {"past": "ba", "present": "bara", "future": "baza", "not": "ntiba"},
}
_SUBJUNCTIVE = {"one": "a", "many": "ba"}

_OWNED = (  # noun and its numerals from two to five, in the noun's class
    ("inka", "ebyiri, eshatu, enye, eshanu"),
    ("ihene", "ebyiri, eshatu, enye, eshanu"),
    ("inkoko", "ebyiri, eshatu, enye, eshanu"),
    ("ibitabo", "bibiri, bitatu, bine, bitanu"),
    ("ibiti", "bibiri, bitatu, bine, bitanu"),
    ("imirima", "ibiri, itatu, ine, itanu"),
    ("amagare", "abiri, atatu, ane, atanu"),
    ("abana", "babiri, batatu, bane, batanu"),
)
_OWNERS = words("umuhinzi, umworozi, umucuruzi, nyogokuru, abaturage, ababyeyi")
_CLASSES = (  # nouns without their initial vowel; this; that; big, small, good, bad, long, short
    ("mwana, mukobwa", "uyu", "uriya", "munini, muto, mwiza, mubi, muremure, mugufi"),
    ("bana, bakobwa", "aba", "bariya", "banini, bato, beza, babi, barebare, bagufi"),
    ("murima, muhanda", "uyu", "uriya", "munini, muto, mwiza, mubi, muremure, mugufi"),
    ("mirima, mihanda", "iyi", "iriya", "minini, mito, myiza, mibi, miremire, migufi"),
    ("magare, mazu", "aya", "ariya", "manini, mato, meza, mabi, maremare, magufi"),
    ("gitabo, giti, gikombe", "iki", "kiriya", "kinini, gito, cyiza, kibi, kirekire, kigufi"),
    ("bitabo, biti, bikombe", "ibi", "biriya", "binini, bito, byiza, bibi, birebire, bigufi"),
    ("nzu, nzira, ntebe", "iyi", "iriya", "nini, nto, nziza, mbi, ndende, ngufi"),
    ("nzu, nzira, ntebe", "izi", "ziriya", "nini, nto, nziza, mbi, ndende, ngufi"),
)


def _join(prefix: str, stem: str) -> str:
    """A prefix loses its final vowel before a stem that starts with one: ara + andika, arandika."""
    return (prefix[:-1] if stem[0] in _VOWELS else prefix) + stem


def _infinitive(stem: str) -> str:
    """Gusoma, kurya, kwandika, kubaka."""
    if stem[0] in "ou":
        return "k" + stem
    if stem[0] in _VOWELS:
        return "kw" + stem
    return ("gu" if stem[0] in _VOICELESS else "ku") + stem


class Kinyarwanda(Language):
    """Kinyarwanda (kin); a verb is its stem and its perfect stem."""

    but = ", naho "
    destinations = words("ku isoko, mu rugo, mu mujyi, ku ishuri, mu murima")
    times = when(
        past="ejo hashize, mu cyumweru gishize, mu kwezi gushize, mu mwaka ushize",
        present="uyu munsi, ubu, muri iki gitondo",
        future="ejo hazaza, mu cyumweru gitaha, mu kwezi gutaha, mu mwaka utaha",
    )
    agreement = people(
        one="""umwana, umushyitsi, umusaza, mama, umutetsi, umukobwa, umunyeshuri, umwarimu, umwanditsi,
            umunyamakuru, umuhinzi, nyogokuru, umworozi, umusore, umurobyi, umucuruzi, umubyeyi, umuganga,
            umuforomo, umudozi, umwubatsi, umushoferi, umupolisi, umuririmbyi, umukinnyi, Uwase, Kagabo,
            Mukamana, Habimana""",
        many="""abana, abashyitsi, abasaza, abatetsi, abakobwa, abanyeshuri, abarimu, abanditsi, abanyamakuru,
            abahinzi, aborozi, abasore, abarobyi, abacuruzi, ababyeyi, abaganga, abaforomo, abadozi,
            abubatsi, abashoferi, abaririmbyi, abakinnyi, abaturage""",
    )
    activities = (
        activity("rya/riye", "umwana, abana, umushyitsi, abashyitsi", "umuceri n'ibishyimbo, ubugari n'isombe, ibirayi, imineke, inyama",
                 "mu rugo, muri resitora, munsi y'igiti", "kugira ngo {s}gire imbaraga"),
        activity("nywa/nyoye", "umusaza, abasaza, umukinnyi, Kagabo", "amata, amazi meza, icyayi, ikawa, igikoma",
                 "mu rugo, ku isoko, muri resitora", "kugira ngo {s}shire inyota"),
        activity("teka/tetse", "mama, umutetsi, abatetsi, abakobwa, Mukamana", "umuceri, ibishyimbo, ibirayi, ibitoki, inyama",
                 "mu gikoni, mu rugo, muri resitora", "kugira ngo {s}gaburire umuryango"),
        activity("soma/somye", "umunyeshuri, abanyeshuri, umwarimu, abarimu, Uwase", "igitabo cy'amateka, ikinyamakuru, ibaruwa, inkuru ngufi, umuvugo",
                 "mu isomero, ku ishuri, mu rugo", "kugira ngo {s}tsinde ikizamini"),
        activity("andika/anditse", "umwanditsi, abanditsi, umunyamakuru, abanyamakuru", "ibaruwa, inkuru, igitabo, umuvugo, raporo",
                 "mu biro, mu rugo, mu isomero", "kugira ngo {s}geze amakuru ku baturage"),
        activity("hinga/hinze", "umuhinzi, abahinzi, nyogokuru, Habimana", "ibigori, imyumbati, ibishyimbo, ibirayi, umuceri",
                 "mu murima, mu gishanga, ku musozi", "kugira ngo {s}bone umusaruro mwiza"),
        activity("ragira/ragiye", "umworozi, aborozi, umusore, abasore", "inka, ihene, intama, inyana",
                 "mu rwuri, ku musozi, hafi y'umugezi", "kugira ngo {s}bone amata menshi"),
        activity("roba/robye", "umurobyi, abarobyi, abasore, Kagabo", "amafi, isambaza, indagara, ifi nini",
                 "mu kiyaga, mu mugezi, mu ruzi", "kugira ngo {s}bone ibyo kurya"),
        activity("gurisha/gurishije", "umucuruzi, abacuruzi, mama, Mukamana", "imyenda, inkweto, imboga, imbuto, isabune",
                 "ku isoko, mu iduka, mu mujyi", "kugira ngo {s}bone inyungu"),
        activity("gura/guze", "umubyeyi, ababyeyi, Uwase, umusore", "imyenda mishya, inkweto nshya, telefoni nshya, umugati, isukari",
                 "mu iduka, ku isoko, mu mujyi", "kugira ngo {s}ishimire iminsi mikuru"),
        activity("igisha/igishije", "umwarimu, abarimu, umubyeyi", "imibare, amateka, Ikinyarwanda, ubumenyi bw'isi, siyansi",
                 "ku ishuri, muri kaminuza, mu cyaro", "kugira ngo abanyeshuri bamenye byinshi"),
        activity("vura/vuye", "umuganga, abaganga, umuforomo, abaforomo", "abarwayi, abana barwaye, inkomere, abasaza",
                 "mu bitaro, mu kigo nderabuzima, mu cyaro", "kugira ngo {s}rokore ubuzima"),
        activity("doda/dodye", "umudozi, abadozi, nyogokuru, abakobwa", "imyenda, ikanzu, amakoti, ingofero, amashuka",
                 "mu iduka, ku isoko, mu rugo", "kugira ngo {s}bone amafaranga"),
        activity("ubaka/ubatse", "umwubatsi, abubatsi, abaturage", "inzu, ikiraro, ishuri, umuhanda, ivuriro",
                 "mu mudugudu, mu mujyi, hafi y'umugezi", "kugira ngo abantu bagire ubuzima bwiza"),
        activity("twara/twaye", "umushoferi, abashoferi, umupolisi, umusore", "imodoka, bisi, ikamyo, moto, tagisi",
                 "mu muhanda, mu mujyi, mu cyaro", "kugira ngo {s}geze abagenzi mu rugo"),
        activity("ririmba/ririmbye", "umuririmbyi, abaririmbyi, Uwase, abanyeshuri", "indirimbo y'igihugu, indirimbo nshya, indirimbo z'ubukwe, indirimbo za kera",
                 "mu rusengero, mu bukwe, ku ishuri", "kugira ngo {s}shimishe abantu"),
        activity("mesa/meshe", "mama, umukobwa, abakobwa, nyogokuru", "imyenda, amashuka, amakoti, ikanzu",
                 "ku mugezi, mu rugo, ku iriba", "kugira ngo {s}gire isuku"),
        activity("kina/kinnye", "umukinnyi, abakinnyi, abana, abasore", "umupira w'amaguru, umupira w'intoki, igisoro, amakarita",
                 "ku kibuga, ku ishuri, mu mudugudu", "kugira ngo {s}ishimishe"),
    )  # fmt: skip

    def clause(self, agent: str, verb: str, tense: str, thing: str) -> str:
        """Conjugate: umwarimu yasomye igitabo; abana bazarya umuceri."""
        stem, perfect = verb.split("/")
        prefix = _PREFIX[self.agreement[agent]][tense]
        return f"{agent} {_join(prefix, perfect if tense in ('past', 'not') else stem)} {thing}"

    def who(self, verb: str, tense: str, thing: str) -> str:
        """Ask with the relative form: ni nde wasomye, usoma, uzasoma."""
        stem, perfect = verb.split("/")
        if tense == "past":
            return f"ni nde {_join('wa', perfect)} {thing}"
        if tense == "future":
            return f"ni nde {_join('uza', stem)} {thing}"
        return f"ni nde {'w' if stem[0] in _VOWELS else 'u'}{stem} {thing}"

    def afterwards(self, agent: str, verb: str, thing: str, destination: str) -> str:
        """Nyuma yo gusoma igitabo, umwarimu yagiye ku isoko."""
        after = _infinitive(verb.split("/")[0])
        return f"nyuma yo {after} {thing}, {self.clause(agent, 'genda/giye', 'past', destination)}"

    def purpose(self, agent: str, purpose: str) -> str:
        """Subjunctive with the subject's prefix: abone, babone; yishime, bishime before a vowel."""
        prefix = _SUBJUNCTIVE[self.agreement[agent]]
        before_i = {"a": "y", "ba": "b"}[prefix]
        return purpose.replace("{s}i", f"{before_i}i").format(s=prefix)

    def facts(self) -> Iterator[str]:
        """Numerals and adjectives in the class of their noun."""
        for owner in _OWNERS:
            has, had = (
                ("afite", "yari afite")
                if self.agreement[owner] == "one"
                else ("bafite", "bari bafite")
            )
            for (noun, counts), (other, other_counts) in permutations(_OWNED, 2):
                for count, other_count in zip(
                    words(counts), words(other_counts)[::-1], strict=True
                ):
                    owned = f"{noun} {count} n'{other} {other_count}"
                    yield finish(f"{owner} {has} {owned}")
                    yield finish(f"kera {owner} {had} {owned}")
        for nouns, this, that, forms in _CLASSES:
            pairs = list(zip(words(forms)[::2], words(forms)[1::2], strict=True))
            for noun, (good, bad) in ((n, p) for n in words(nouns) for p in pairs):
                yield finish(f"{this} {noun} ni {good} ariko {that} ni {bad}")
                yield finish(f"{this} {noun} ni {bad} ariko {that} ni {good}")
