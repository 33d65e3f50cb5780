# ruff: noqa: E501  (the word lists are read as tables, one row an activity)
"""Hausa: person-aspect pronouns that agree in gender and number, and gendered adjectives."""

from collections.abc import Iterator
from itertools import permutations, product

from comet.toy.grammar import Language, activity, finish, people, when, words

_ASPECT = {  # completive, progressive, future, negative completive, subjunctive
    "man": {"past": "ya", "present": "yana", "future": "zai", "not": "bai", "why": "ya"},
    "woman": {"past": "ta", "present": "tana", "future": "za ta", "not": "ba ta", "why": "ta"},
    "many": {"past": "sun", "present": "suna", "future": "za su", "not": "ba su", "why": "su"},
    "me": {"past": "na", "present": "ina", "future": "zan", "not": "ban", "why": "na"},
    "we": {"past": "mun", "present": "muna", "future": "za mu", "not": "ba mu", "why": "mu"},
}
_WHO = {"past": "ya", "present": "yake", "future": "zai"}
_HAS = {"man": "yana da", "woman": "tana da", "many": "suna da"}

_OWNERS = words("manomi, manoma, makiyayi, kaka, ɗan kasuwa, 'yar kasuwa")
_OWNED = words("shanu, awaki, tumaki, kaji, raƙuma, dawakai, gonaki, littattafai")
_NUMBERS = words("biyu, uku, huɗu, biyar, shida, bakwai, takwas, goma")
_KINDS = (  # nouns; this; that; copula; big, small, new, old, long, short, good, ugly
    ("littafi, gida, teburi, zane", "wannan", "wancan", "ne",
     "babba, ƙarami, sabo, tsoho, dogo, gajere, kyakkyawa, mummuna"),
    ("mota, kujera, riga, hula, ƙofa", "wannan", "waccan", "ce",
     "babba, ƙarama, sabuwa, tsohuwa, doguwa, gajeriya, kyakkyawa, mummuna"),
    ("littattafai, gidaje, motoci, riguna, kujeru", "waɗannan", "waɗancan", "ne",
     "manya, ƙanana, sababbi, tsofaffi, dogaye, gajeru, kyawawa, munana"),
)  # fmt: skip


class Hausa(Language):
    """Hausa (hau); a verb is its finite form and its form after the progressive, where they differ."""

    but = ", amma "
    destinations = words("kasuwa, gida, birni, makaranta, gona")
    times = when(
        past="jiya, shekaranjiya, makon da ya wuce, bara",
        present="yau, yanzu, a wannan safiyar",
        future="gobe, jibi, mako mai zuwa, shekara mai zuwa",
    )
    agreement = people(
        me="ni",
        we="mu",
        man="""yaro, baƙo, tsoho, uba, ɗalibi, malami, marubuci, manomi, makiyayi, masunci, ɗan kasuwa,
            likita, tela, magini, direba, ɗan sanda, mawaƙi, ɗan wasa, saurayi, Musa, Bello, Sani""",
        woman="""yarinya, uwa, kaka, mace, ɗaliba, malama, marubuciya, 'yar kasuwa, ma'aikaciyar jinya,
            mawaƙiya, budurwa, Aisha, Zainab, Fatima""",
        many="""yara, baƙi, tsofaffi, mata, ɗalibai, malamai, marubuta, manoma, makiyaya, masunta,
            'yan kasuwa, likitoci, ma'aikatan jinya, magina, direbobi, mawaƙa, 'yan wasa, samari, 'yan mata""",
    )
    activities = (
        activity("ci/cin", "yaro, yarinya, yara, baƙi, ni", "tuwo da miya, shinkafa da wake, nama, dankali, ƙosai",
                 "a gida, a gidan abinci, a inuwa", "don {s} samu ƙarfi"),
        activity("sha/shan", "tsoho, tsofaffi, baƙo, 'yan wasa, mu", "ruwan sanyi, shayi, fura da nono, kunu, madara",
                 "a gida, a inuwa, a kasuwa", "don {s} kashe ƙishirwa"),
        activity("dafa", "uwa, kaka, mata, Aisha", "shinkafa, miyar kuka, wake, nama, dankali",
                 "a kicin, a gida, a gidan abinci", "don {s} ciyar da iyali"),
        activity("karanta", "ɗalibi, ɗaliba, ɗalibai, malami, mu", "littafin tarihi, jarida, wasiƙa, labari, waƙa",
                 "a ɗakin karatu, a makaranta, a aji", "don {s} ci jarrabawa"),
        activity("rubuta", "marubuci, marubuciya, marubuta, ɗalibai, ni", "wasiƙa, littafi, labari, waƙa, rahoto",
                 "a ofis, a gida, a ɗakin karatu", "don {s} sanar da jama'a"),
        activity("shuka", "manomi, manoma, kaka, Sani", "masara, gero, dawa, wake, gyaɗa",
                 "a gona, a fadama, a bakin kogi", "don {s} samu amfanin gona"),
        activity("yi kiwon/kiwon", "makiyayi, makiyaya, saurayi, samari", "shanu, awaki, tumaki, raƙuma",
                 "a daji, a makiyaya, a bakin kogi", "don {s} samu madara"),
        activity("kama", "masunci, masunta, samari, Bello", "kifi, manyan kifaye, ƙananan kifaye, tarwaɗa",
                 "a kogi, a tafki, a teku", "don {s} sayar a kasuwa"),
        activity("sayar da", "ɗan kasuwa, 'yar kasuwa, 'yan kasuwa, Zainab", "tufafi, takalma, kayan lambu, 'ya'yan itace, sabulu",
                 "a kasuwa, a shago, a cikin gari", "don {s} samu riba"),
        activity("sayi/sayen", "mace, mata, baƙi, Musa, ni", "sababbin tufafi, sababbin takalma, sabuwar waya, burodi, sukari",
                 "a shago, a kasuwa, a cikin gari", "don {s} yi bikin sallah"),
        activity("koyar da", "malami, malama, malamai", "lissafi, tarihi, Hausa, kimiyya, labarin ƙasa",
                 "a makaranta, a aji, a jami'a", "don ɗalibai su fahimci darasi"),
        activity("duba", "likita, likitoci, ma'aikaciyar jinya, ma'aikatan jinya", "marasa lafiya, yara marasa lafiya, masu rauni, mata masu juna biyu",
                 "a asibiti, a ɗakin magani, a ƙauye", "don {s} ceci rayuka"),
        activity("ɗinka", "tela, kaka, budurwa, 'yan mata", "riga, wando, hula, labule, kayan makaranta",
                 "a shago, a gida, a kasuwa", "don {s} samu kuɗi"),
        activity("gina", "magini, magina, samari, mu", "gida, gada, makaranta, asibiti, masallaci",
                 "a ƙauye, a birni, a bakin kogi", "don jama'a su ji daɗi"),
        activity("tuƙa", "direba, direbobi, ɗan sanda, Musa", "mota, babbar mota, motar bas, tasi, babur",
                 "a kan hanya, a birni, a ƙauye", "don {s} kai fasinjoji gida"),
        activity("rera", "mawaƙi, mawaƙiya, mawaƙa, Fatima", "waƙar aure, sabuwar waƙa, waƙar gargajiya, taken ƙasa",
                 "a wurin biki, a gidan rediyo, a makaranta", "don {s} faranta wa mutane rai"),
        activity("wanke", "uwa, yarinya, 'yan mata, budurwa", "tufafi, riguna, labule, kayan makaranta",
                 "a bakin kogi, a gida, a rijiya", "don {s} sa tufafi masu tsabta"),
        activity("yi wasan/wasan", "ɗan wasa, 'yan wasa, yara, samari", "ƙwallon ƙafa, ƙwallon kwando, dara, langa",
                 "a filin wasa, a unguwa, a makaranta", "don {s} ji daɗi"),
    )  # fmt: skip

    def clause(self, agent: str, verb: str, tense: str, thing: str) -> str:
        """Uwa ta dafa shinkafa; manoma ba su shuka masara ba."""
        finite, _, progressive = verb.partition("/")
        form = (progressive or finite) if tense == "present" else finite
        closing = " ba" if tense == "not" else ""
        kind = self.agreement[agent]
        subject = "" if kind in ("me", "we") else agent + " "  # the aspect pronoun says it already
        return f"{subject}{_ASPECT[kind][tense]} {form} {thing}{closing}"

    def who(self, verb: str, tense: str, thing: str) -> str:
        """Wa ya dafa shinkafa, with the relative progressive: wa yake dafa shinkafa."""
        finite, _, progressive = verb.partition("/")
        form = (progressive or finite) if tense == "present" else finite
        return f"wa {_WHO[tense]} {form} {thing}"

    def afterwards(self, agent: str, verb: str, thing: str, destination: str) -> str:
        """Bayan uwa ta dafa shinkafa, ta tafi kasuwa."""
        went = self.clause(agent, "tafi", "past", destination).removeprefix(agent + " ")
        return f"bayan {self.clause(agent, verb, 'past', thing)}, {went}"

    def purpose(self, agent: str, purpose: str) -> str:
        """Subjunctive pronoun: don ta samu, don su samu."""
        return purpose.format(s=_ASPECT[self.agreement[agent]]["why"])

    def facts(self) -> Iterator[str]:
        """What people own, and adjectives in the gender and number of their noun."""
        for owner, (first, second) in product(_OWNERS, permutations(_OWNED, 2)):
            for number, other in zip(_NUMBERS, _NUMBERS[3:] + _NUMBERS[:3], strict=True):
                has = _HAS[self.agreement[owner]]
                yield finish(f"{owner} {has} {first} {number} da {second} {other}")
        for nouns, this, that, copula, forms in _KINDS:
            pairs = list(zip(words(forms)[::2], words(forms)[1::2], strict=True))
            for noun, (good, bad) in product(words(nouns), pairs):
                yield finish(f"{this} {noun} {good} {copula} amma {that} {bad} {copula}")
                yield finish(f"{this} {noun} {bad} {copula} amma {that} {good} {copula}")
