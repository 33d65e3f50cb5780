# ruff: noqa: E501  (the word lists are read as tables, one row an activity)
"""Swahili: subject prefixes, tense markers and noun-class agreement."""

from collections.abc import Iterator
from itertools import permutations

from comet.toy.grammar import Language, activity, finish, people, when, words

_SUBJECT = {"me": "ni", "we": "tu", "one": "a", "many": "wa"}
_NEGATIVE = {"me": "si", "we": "hatu", "one": "ha", "many": "hawa"}
_TENSE = {"past": "li", "present": "na", "future": "ta"}
_MONOSYLLABIC = ("la", "nywa")  # keep the infinitive's ku after a tense marker: anakula, atakunywa

_OWNERS = {
    "mkulima": "one",
    "wakulima": "many",
    "babu": "one",
    "bibi": "one",
    "mfanyabiashara": "one",
    "wanakijiji": "many",
}
_OWNED = (  # noun and its numerals from two to five, in the noun's class
    ("ng'ombe", "wawili, watatu, wanne, watano"),
    ("mbuzi", "wawili, watatu, wanne, watano"),
    ("kuku", "wawili, watatu, wanne, watano"),
    ("vitabu", "viwili, vitatu, vinne, vitano"),
    ("viti", "viwili, vitatu, vinne, vitano"),
    ("miti ya matunda", "miwili, mitatu, minne, mitano"),
    ("mashamba", "mawili, matatu, manne, matano"),
    ("nyumba", "mbili, tatu, nne, tano"),
)
_CLASSES = (  # nouns; this; that; good, bad, big, small, long, short, new, old (literally: of long ago)
    ("mtoto, mgeni", "huyu", "yule", "mzuri, mbaya, mkubwa, mdogo, mrefu, mfupi"),
    ("watoto, wageni", "hawa", "wale", "wazuri, wabaya, wakubwa, wadogo, warefu, wafupi"),
    ("mkeka, mfuko", "huu", "ule", "mzuri, mbaya, mkubwa, mdogo, mrefu, mfupi, mpya, wa zamani"),
    ("mikeka, mifuko", "hii", "ile", "mizuri, mibaya, mikubwa, midogo, mirefu, mifupi, mipya, ya zamani"),
    ("shamba, gari", "hili", "lile", "zuri, baya, kubwa, dogo, refu, fupi, jipya, la zamani"),
    ("mashamba, magari", "haya", "yale", "mazuri, mabaya, makubwa, madogo, marefu, mafupi, mapya, ya zamani"),
    ("kitabu, kiti, kisu", "hiki", "kile", "kizuri, kibaya, kikubwa, kidogo, kirefu, kifupi, kipya, cha zamani"),
    ("vitabu, viti, visu", "hivi", "vile", "vizuri, vibaya, vikubwa, vidogo, virefu, vifupi, vipya, vya zamani"),
    ("nyumba, meza, barabara", "hii", "ile", "nzuri, mbaya, kubwa, ndogo, ndefu, fupi, mpya, ya zamani"),
    ("nyumba, meza, barabara", "hizi", "zile", "nzuri, mbaya, kubwa, ndogo, ndefu, fupi, mpya, za zamani"),
)  # fmt: skip


class Swahili(Language):
    """Swahili (swa)."""

    but = ", lakini "
    destinations = words("sokoni, nyumbani, mjini, kijijini, dukani")
    times = when(
        past="jana, juzi, wiki iliyopita, mwaka uliopita",
        present="leo, sasa hivi, asubuhi hii",
        future="kesho, kesho kutwa, wiki ijayo, mwaka ujao",
    )
    agreement = people(
        me="mimi",
        we="sisi",
        one="""mtoto, mgeni, mzee, mama, mpishi, dada, shangazi, mwanafunzi, mwalimu, mwandishi, katibu,
            mkulima, babu, bibi, mchungaji, kijana, mvuvi, mfanyabiashara, kaka, profesa, daktari, muuguzi,
            fundi, mhandisi, dereva, polisi, mwimbaji, msichana, mchezaji, Asha, Juma, Neema, Baraka""",
        many="""watoto, wageni, wazee, wapishi, wanafunzi, walimu, waandishi, wakulima, wachungaji, vijana,
            wavuvi, wafanyabiashara, maprofesa, madaktari, wauguzi, mafundi, wahandisi, madereva, waimbaji,
            wanakwaya, wasichana, wachezaji""",
    )
    activities = (
        activity("la", "mtoto, watoto, mgeni, wageni, mimi", "wali na maharage, ugali na samaki, ndizi na nyama, matunda, chapati",
                 "nyumbani, hotelini, chini ya mti", "ili {s}pate nguvu"),
        activity("nywa", "mzee, wazee, Juma, wachezaji, sisi", "chai ya maziwa, maji baridi, maji ya matunda, kahawa, uji",
                 "mkahawani, nyumbani, kivulini", "ili {s}tulize kiu"),
        activity("pika", "mama, mpishi, wapishi, dada, shangazi", "wali, ugali, mchuzi wa kuku, maharage, viazi",
                 "jikoni, hotelini, nyumbani", "ili {s}lishe familia"),
        activity("soma", "mwanafunzi, wanafunzi, mwalimu, Asha, sisi", "kitabu cha historia, gazeti, hadithi fupi, barua, shairi",
                 "maktabani, shuleni, darasani", "ili {s}faulu mtihani"),
        activity("andika", "mwandishi, waandishi, katibu, wanafunzi, mimi", "barua, riwaya, habari, shairi, ripoti",
                 "ofisini, nyumbani, maktabani", "ili {s}toe taarifa kwa umma"),
        activity("panda", "mkulima, wakulima, babu, bibi, Baraka", "mahindi, mihogo, maharage, migomba, mpunga",
                 "shambani, bondeni, kando ya mto", "ili {s}pate mavuno mazuri"),
        activity("chunga", "mchungaji, wachungaji, kijana, vijana", "ng'ombe, mbuzi, kondoo, ngamia, punda",
                 "malishoni, mlimani, karibu na mto", "ili {s}pate maziwa mengi"),
        activity("vua", "mvuvi, wavuvi, vijana, babu", "samaki, pweza, kamba, dagaa",
                 "baharini, ziwani, mtoni", "ili {s}uze sokoni"),
        activity("uza", "mfanyabiashara, wafanyabiashara, mama, Neema", "nguo, viatu, mboga, matunda, sabuni",
                 "sokoni, dukani, mjini", "ili {s}pate faida"),
        activity("nunua", "dada, kaka, wageni, Juma, mimi", "nguo mpya, viatu vipya, simu mpya, mkate, sukari",
                 "dukani, sokoni, mjini", "ili {s}sherehekee sikukuu"),
        activity("fundisha", "mwalimu, walimu, profesa, maprofesa", "hisabati, historia, Kiswahili, sayansi, jiografia",
                 "shuleni, darasani, chuoni", "ili wanafunzi waelewe somo"),
        activity("watibu", "daktari, madaktari, muuguzi, wauguzi", "wagonjwa, watoto wagonjwa, majeruhi, wazee",
                 "hospitalini, zahanatini, wodini", "ili {s}okoe maisha"),
        activity("shona", "fundi, mafundi, dada, bibi", "nguo, suti, sare za shule, mapazia, kofia",
                 "dukani, karakanani, nyumbani", "ili {s}pate kipato"),
        activity("jenga", "fundi, mafundi, mhandisi, wahandisi", "nyumba, daraja, shule, barabara, ukuta",
                 "kijijini, mjini, kando ya mto", "ili watu wapate huduma bora"),
        activity("endesha", "dereva, madereva, polisi, kaka", "basi, gari, lori, pikipiki, teksi",
                 "barabarani, mjini, kijijini", "ili {s}wapeleke abiria"),
        activity("imba", "mwimbaji, waimbaji, wanakwaya, Asha", "wimbo wa taifa, wimbo mpya, nyimbo za harusi, nyimbo za asili",
                 "kanisani, jukwaani, harusini", "ili {s}wafurahishe watu"),
        activity("fua", "mama, dada, msichana, wasichana", "nguo, mashuka, mapazia, sare za shule",
                 "mtoni, nyumbani, kisimani", "ili {s}vae nguo safi"),
        activity("cheza", "mchezaji, wachezaji, watoto, vijana", "mpira wa miguu, mpira wa kikapu, bao, karata",
                 "uwanjani, mtaani, shuleni", "ili {s}jifurahishe"),
    )  # fmt: skip

    def clause(self, agent: str, verb: str, tense: str, thing: str) -> str:
        """Conjugate: Mama alipika wali; wakulima hawakupanda mahindi."""
        kind = self.agreement[agent]
        if tense == "not":
            return f"{agent} {_NEGATIVE[kind]}ku{verb} {thing}"
        infinitive = "ku" if verb in _MONOSYLLABIC else ""
        return f"{agent} {_SUBJECT[kind]}{_TENSE[tense]}{infinitive}{verb} {thing}"

    def who(self, verb: str, tense: str, thing: str) -> str:
        """Nani alipika wali, and then place and time."""
        infinitive = "ku" if verb in _MONOSYLLABIC else ""
        return f"nani a{_TENSE[tense]}{infinitive}{verb} {thing}"

    def afterwards(self, agent: str, verb: str, thing: str, destination: str) -> str:
        """Baada ya kupika wali, mama alikwenda sokoni."""
        return f"baada ya ku{verb} {thing}, {self.clause(agent, 'kwenda', 'past', destination)}"

    def purpose(self, agent: str, purpose: str) -> str:
        """Subjunctive with the subject's prefix: ili apate, ili wapate."""
        return purpose.format(s=_SUBJECT[self.agreement[agent]])

    def facts(self) -> Iterator[str]:
        """Numerals and adjectives in the class of their noun."""
        for owner, kind in _OWNERS.items():
            for (noun, counts), (other, other_counts) in permutations(_OWNED, 2):
                for count, other_count in zip(
                    words(counts), words(other_counts)[::-1], strict=True
                ):
                    owned = f"{noun} {count} na {other} {other_count}"
                    yield finish(f"{owner} {_SUBJECT[kind]}na {owned}")
                    yield finish(f"zamani {owner} {_SUBJECT[kind]}likuwa na {owned}")
        for nouns, this, that, forms in _CLASSES:
            pairs = list(zip(words(forms)[::2], words(forms)[1::2], strict=True))
            for noun, (good, bad) in ((n, p) for n in words(nouns) for p in pairs):
                yield finish(f"{noun} {this} ni {good} lakini {that} ni {bad}")
                yield finish(f"{noun} {this} ni {bad} lakini {that} ni {good}")
