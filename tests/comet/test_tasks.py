import json
import logging
import unicodedata
from dataclasses import replace

import pytest
from real_data import DATA, needs_real_data

from comet.tasks import Example, TaskRecipe, open_task
from comet.tasks.task import problem_table

TRAINED = ("hau", "ibo", "kin", "swa", "yor")
HEADER = b"tweet\tlabel\n"


def afrisenti(tmp_path, content, language="hau", split="train"):
    folder = tmp_path / language
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.tsv").write_bytes(content)
    return TaskRecipe(data=str(tmp_path))


def reasons(data):
    return [(problem.line, problem.reason) for problem in data.problems]


def texts(data):
    return [(example.row, example.text, example.label) for example in data.examples]


def test_labels_and_columns_are_the_same_however_they_were_typed(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "rére") for form in ("NFC", "NFD"))
    assert nfc != nfd
    for split in ("train", "dev"):
        one = nfd if split == "train" else nfc
        column = nfc if split == "train" else nfd
        rows = f"text\t{column}\na\t{one}\nb\tburú\n"
        afrisenti(tmp_path, rows.encode(), split=split)
        (tmp_path / "hau" / f"{split}.txt").write_text(f"a B-{one}\nb O\n\n", encoding="utf-8")
    recipe = TaskRecipe(task="sequence", data=str(tmp_path), label_column=nfc)
    data = open_task(recipe, "dev", ["hau"])
    assert data.task.labels == ("burú", nfc)
    assert texts(data) == [(2, "a", 1), (3, "b", 0)]
    assert texts(open_task(recipe, "dev", ["hau"], labels=["burú", nfd])) == texts(data)
    folder = tmp_path / "hau"
    words = TaskRecipe(task="token", train=str(folder / "train.txt"), dev=str(folder / "dev.txt"))
    assert open_task(words, "dev").task.labels == ("O", f"B-{nfc}")
    assert open_task(words, "dev").problems == ()


@pytest.mark.parametrize("name", ["train.tsv", "train.csv", "train.jsonl", "train.conll"])
def test_files_in_another_encoding_are_refused_by_name_and_nul_characters_counted(tmp_path, name):
    tag, comma = name.endswith("conll"), "," if name.endswith("csv") else "\t"
    rows = [(f"eg\u00e9szs\u00e9g{number}", ("O", "B-PER")[number % 2]) for number in range(40)]
    lines = ["text" + comma + "label", *(word + comma + label for word, label in rows)]
    if tag:
        lines = [line for word, label in rows for line in (f"{word} {label}", "")]
    if name.endswith("jsonl"):
        records = [{"text": word, "label": label} for word, label in rows]
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
    file = tmp_path / name
    recipe = TaskRecipe(task="token" if tag else "sequence", train=str(file))
    for encoding, message in {
        "UTF-16": "is in UTF-16, expected UTF-8; convert it: iconv -f UTF-16 -t UTF-8",
        "UTF-32": "is in UTF-32",
        "UTF-16LE": "holds NUL bytes",
        "latin-1": "is not in UTF-8: 40 of its first 4[01] lines cannot be read; convert it: iconv",
    }.items():
        file.write_bytes("\n".join(lines).encode(encoding))
        with pytest.raises(ValueError, match=f"task.data: .*{name} {message}") as error:
            open_task(recipe, "train")
        assert "\n" not in str(error.value)
    lines[10] = lines[10].replace("eg", "e\0g")
    assert "\0" in lines[10]
    file.write_text("\n".join(lines), encoding="utf-8")
    data = open_task(recipe, "train")
    assert reasons(data)[0] == (11, "holds NUL characters")
    assert len(data.examples) == 39


# Tables as they were published


def test_good_rows_of_a_bad_file_are_all_read_and_bad_ones_all_reported(tmp_path, caplog):
    rows = [
        b'"quoted from the start\tnegative',
        b'inside "quotes" and a lone "\tneutral',
        b"one\ttab too many\tpositive",
        b"no label at all",
        b"empty label\t ",
        b"\tpositive",
        b"other label\tmixed",
        b"tweet\tlabel",
        b"",
        b"bad \xff byte\tpositive",
        "\u1ecdm\u1ecd\u2028with\x85odd\x0bends\t positive \r".encode(),
        b"trailing tab\tpositive\t",
    ]
    recipe = afrisenti(
        tmp_path, b"\xef\xbb\xbftweet\tlabel\r\n" + b"\n".join(rows) + b"\nlast\tneutral"
    )
    with caplog.at_level(logging.WARNING):
        data = open_task(recipe, "train", ["hau"])
    assert texts(data) == [
        (2, '"quoted from the start', 0),
        (3, 'inside "quotes" and a lone "', 1),
        (12, "ọmọ\u2028with\x85odd\x0bends", 2),
        (14, "last", 1),
    ]
    assert sorted(reasons(data)) == [
        (4, "3 columns, expected 2"),
        (5, "1 columns, expected 2"),
        (6, "no label in label"),
        (7, "empty text"),
        (8, "unknown label 'mixed'"),
        (9, "the header once more"),
        (10, "empty line"),
        (11, "not valid UTF-8"),
        (13, "3 columns, expected 2"),
    ]
    assert "9 rows of the train split are left out" in caplog.text
    table = "\n".join(problem_table(data.problems))
    assert "train.tsv: 2 left out, 3 columns, expected 2: lines 4, 13" in table


def test_a_strict_reader_ends_at_the_first_bad_row(tmp_path):
    afrisenti(tmp_path, HEADER + b"a\tpositive\nb\tmixed\nc\n")
    recipe = TaskRecipe(data=str(tmp_path), strict=True)
    with pytest.raises(
        ValueError, match=r"train\.tsv:4: 1 columns.*task\.strict|:3: unknown label"
    ):
        open_task(recipe, "train", ["hau"])


def test_comma_separated_files_quote_fields_and_a_lone_quote_spoils_its_row_alone(tmp_path):
    (tmp_path / "train.csv").write_text(
        "id,text,label\n"
        '1,"a, b",yes\n'
        '2,"two\nlines ""quoted""",no\n'
        '3,"never closed,yes\n'
        "4,plain,no\n"
        '5,"again closed",yes\n'
        "6,also plain,no\n"
    )
    data = open_task(TaskRecipe("sequence", data=str(tmp_path)), "train", ["hau"])
    assert data.task.labels == ("no", "yes")
    assert texts(data) == [
        (2, "a, b", 1),
        (3, 'two\nlines "quoted"', 0),
        (6, "plain", 0),
        (7, "again closed", 1),
        (8, "also plain", 0),
    ]
    assert reasons(data) == [(5, "1 columns, expected 3")]


def test_json_lines_with_numbered_labels_and_named_columns(tmp_path):
    records = [
        {"other": 1},
        {"body": "a", "stars": 10, "lang": "ha"},
        {"body": "b", "stars": 9, "lang": "yor"},
        {"body": 7, "stars": 9, "lang": "yo"},
        {"body": "c", "stars": None, "lang": "yo"},
        {"body": "d", "stars": 9},
        [1],
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, records)) + "\n{\n\n")
    columns = {"text_column": "body", "label_column": "stars", "language_column": "lang"}
    recipe = TaskRecipe("sequence", data=str(tmp_path), **columns)
    data = open_task(recipe, "train")
    assert data.task.labels == ("9", "10")  # by value, not by spelling
    assert data.splits == {"hau": [Example("a", 1, "hau", 2)], "yor": [Example("b", 0, "yor", 3)]}
    assert reasons(data) == [
        (1, "has only the columns other"),
        (4, '"text" is int, not a string'),
        (5, "no label in stars"),
        (6, "no language in lang"),
        (7, "not a JSON object"),
        (8, "not valid JSON"),
        (9, "empty line"),
    ]
    assert open_task(recipe, "train", ["yo"]).languages == ("yor",)


# CoNLL


def test_sentences_keep_every_word_or_are_left_out_and_reported(tmp_path):
    (tmp_path / "hau").mkdir()
    file = tmp_path / "hau/train.txt"
    file.write_bytes(
        b"\xef\xbb\xbf-DOCSTART- O\r\n\r\n"
        b"Amina B-PER\r\nta O\r\n"
        b"\n\n"
        b"Kano\tNNP\tB-LOC\n\xc2\xa0 O\n"
        b"\n"
        b"lost O\nno-tag\nlost O\n"
        b"\n"
        b"odd B-XYZ\n"
        b" \n"
        b"bad \xff O\n. O\n"
        b"\n"
        b"2020 I-DATE"
    )
    data = open_task(TaskRecipe("masakhaner", data=str(tmp_path)), "train", ["hau"])
    number = {label: place for place, label in enumerate(data.task.labels)}
    assert texts(data) == [
        (3, ("Amina", "ta"), (number["B-PER"], number["O"])),
        (7, ("Kano", "\xa0"), (number["B-LOC"], number["O"])),
        (19, ("2020",), (number["I-DATE"],)),
    ]
    assert sorted(reasons(data)) == [
        (11, "a word without a tag; its sentence is left out"),
        (14, "unknown label 'B-XYZ'"),
        (16, "not valid UTF-8"),
    ]


WORDS = ["Amina ta tafi Kano", "#Kano da Sani Abba", "# 1 = 1", "Sani Abba Sani"]
BIO = ["B-PER O O B-LOC", "B-LOC O B-PER I-PER", "O O O O", "B-PER I-PER B-PER"]


def conll(
    line=lambda number, word, tag: f"{word} {tag}", tags=BIO, before=lambda number: [], end="\n"
):
    """Those sentences ten times, as a file."""
    lines = []
    for number, (words, its) in enumerate([*zip(WORDS, tags, strict=True)] * 10):
        lines += before(number)
        pairs = zip(words.split(), its.split(), strict=True)
        lines += [line(place, word, tag) for place, (word, tag) in enumerate(pairs, 1)]
        lines.append("")
    return end.join(lines)


@pytest.mark.parametrize(
    ("content", "scheme"),
    [
        (conll(), None),
        (conll(lambda number, word, tag: f"{word}\t{tag}\t", end="\r\n"), None),
        ("\ufeff-DOCSTART- -X- O O\n\n" + conll(lambda n, word, tag: f"{word} NN B-NP {tag}"), None),
        (conll(lambda number, word, tag: f"{number}\t{word}\t_\t{tag}"), None),
        (conll(before=lambda n: [f"# id {n} domain=x", "# text = Ina Kano O", "#", "#id=7"]), None),
        (conll(lambda n, w, t: f"{w}\t_\t_\t{t}", before=lambda n: ["# id 3f3a\tdomain=en"]), None),
        (conll(tags=["S-PER O O S-LOC", "S-LOC O B-PER E-PER", "O O O O", "B-PER E-PER S-PER"]), "IOBES"),
        (conll(tags=["U-PER O O U-LOC", "U-LOC O B-PER L-PER", "O O O O", "B-PER L-PER U-PER"]), "BILOU"),
        (conll(tags=["I-PER O O I-LOC", "I-LOC O I-PER I-PER", "O O O O", "I-PER I-PER B-PER"]), "IOB1"),
    ],
    ids=["plain", "tabs", "columns", "numbered", "comments", "wide comments", "IOBES", "BILOU", "IOB1"],
)  # fmt: skip
def test_tags_are_read_alike_in_every_layout_and_scheme(tmp_path, content, scheme, caplog):
    (tmp_path / "train.conll").write_bytes(content.encode())
    data = open_task(TaskRecipe("token", data=str(tmp_path)), "train", ["hau"])
    assert data.task.labels == ("O", "B-LOC", "B-PER", "I-PER")
    assert data.problems == ()
    read = [
        (" ".join(one.text), " ".join(data.task.labels[number] for number in one.label))
        for one in data.examples
    ]
    assert read == [*zip(WORDS, BIO, strict=True)] * 10
    said = (
        []
        if scheme is None
        else [f"task: the tags of {tmp_path}/train.conll are {scheme}, read as BIO"]
    )
    assert [record.getMessage() for record in caplog.records] == said


def test_a_word_that_begins_with_the_sign_of_a_comment_is_no_comment(tmp_path):
    (tmp_path / "train.conll").write_text("#Kano\nne O\n\n" + conll() + "\nta O\n# O\n#Kano\n")
    data = open_task(TaskRecipe("token", data=str(tmp_path)), "train", ["hau"])
    assert len(data.examples) == 40
    assert [reason for _, reason in reasons(data)] == [
        "a word without a tag; its sentence is left out"
    ] * 2


def test_words_with_spaces_stay_whole_between_tabs(tmp_path):
    (tmp_path / "train.conll").write_text("New York\tB-LOC\nda\tO\n\n" * 3)
    data = open_task(TaskRecipe("token", data=str(tmp_path)), "train", ["hau"])
    assert data.examples[0].text == ("New York", "da")


def test_an_odd_label_among_a_thousand_is_left_out_and_not_a_class(tmp_path, caplog):
    sentences = conll() * 10
    odd = 'Sani I-org\n. O\n\nKano S-LOC\n. O\n\nquote "\n\n'
    (tmp_path / "train.conll").write_text(sentences + "\n" + odd)
    words = TaskRecipe("token", data=str(tmp_path))
    data = open_task(words, "train", ["hau"])
    assert data.task.labels == ("O", "B-LOC", "B-PER", "I-PER")
    assert [reason for _, reason in reasons(data)] == [
        "unknown label 'I-org'",
        "unknown label 'S-LOC'",
        "unknown label '\"'",
    ]
    assert "the label 'I-org' is in one row of the train split alone and is left out" in caplog.text
    named = TaskRecipe("token", data=str(tmp_path), labels=["O", "B-org", "I-org"])
    assert "I-org" in open_task(named, "train", ["hau"]).task.labels
    rows = [f"text {number}\t{'ab'[number % 2]}" for number in range(1200)]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *rows, "odd\tbb", ""]))
    texts_alone = TaskRecipe("sequence", train=str(tmp_path / "train.tsv"))
    data = open_task(texts_alone, "train")
    assert data.task.labels == ("a", "b")
    assert reasons(data) == [(1202, "unknown label 'bb'")]
    (tmp_path / "train.tsv").write_text("text\tlabel\none\ta\ntwo\tb\nthree\tb\n")
    assert open_task(texts_alone, "train").task.labels == ("a", "b")  # few may each be meant


def test_tags_of_json_lines_and_of_the_train_split(tmp_path):
    lines = [
        {"tokens": ["a", "b"], "ner_tags": ["B-Z", "O"]},
        {"tokens": ["a", "b"], "ner_tags": ["O"]},
        {"tokens": [], "ner_tags": []},
        {"tokens": "ab", "ner_tags": "O"},
        {"tokens": ["a"], "ner_tags": ["junk"]},
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = open_task(TaskRecipe("token", data=str(tmp_path)), "train", ["hau"])
    assert data.task.labels == ("O", "B-Z")
    assert texts(data) == [(1, ("a", "b"), (1, 0))]
    assert [reason for _, reason in reasons(data)] == [
        "2 words, but 1 tags",
        "no words",
        "tokens and ner_tags are not two lists",
        "unknown label 'junk'",
    ]


# Where files lie, and what is wrong


def test_files_by_language_together_alone_and_by_other_names(tmp_path):
    content = HEADER + b"a\tpositive\nb\tnegative\n"
    for language, split in (("ha", "train"), ("yor", "validation"), ("ha", "validation")):
        afrisenti(tmp_path, content, language, split)
    recipe = TaskRecipe(data=str(tmp_path))
    assert open_task(recipe, "train").languages == ("hau",)
    assert open_task(recipe, "dev", ["yo", "hau"]).languages == ("yor", "hau")
    alone = TaskRecipe(data=str(tmp_path / "ha/validation.tsv"))
    assert open_task(alone, "test").languages == ("hau",)
    named = TaskRecipe(train=str(tmp_path / "ha/validation.tsv"), languages=["sw"])
    assert open_task(named, "train").languages == ("swa",)


def test_labels_come_from_train_alone_unless_given(tmp_path):
    (tmp_path / "train.tsv").write_bytes(HEADER + b"a\tup\nb\tdown\n")
    (tmp_path / "test.tsv").write_bytes(HEADER + b"a\tup\nb\tsideways\n")
    recipe = TaskRecipe("sequence", data=str(tmp_path), languages=["hau"])
    data = open_task(recipe, "test")
    assert data.task.labels == ("down", "up")
    assert reasons(data) == [(3, "unknown label 'sideways'")]
    given = open_task(recipe, "test", labels=("up", "sideways"))
    assert texts(given) == [(2, "a", 0), (3, "b", 1)]


def test_the_fingerprint_is_that_of_the_examples(tmp_path):
    content = HEADER + b"a\tpositive\nb\tnegative\n"
    first = open_task(afrisenti(tmp_path, content), "train").fingerprint
    assert open_task(afrisenti(tmp_path, content + b"bad row\n"), "train").fingerprint == first
    for changed in (content.replace(b"a\t", b"c\t"), content.replace(b"nega", b"posi")):
        assert open_task(afrisenti(tmp_path, changed), "train").fingerprint != first


def test_what_cannot_be_used_ends_with_one_clear_line(tmp_path):
    file = tmp_path / "hau/train.tsv"
    recipe = afrisenti(tmp_path, b"text\tlabel\tlabel\na\tpositive\tpositive\n")
    cases = [
        (recipe, "train", ["hau"], r"task\.label_column: .* has 2 columns named 'label'"),
        (recipe, "train", ["hau", "yo"], r"has no train file .* for yor; it holds hau"),
        (recipe, "dev", None, r"has no dev or validation or valid file"),
        (recipe, "other", None, r"split: got 'other', expected train, dev, test"),
        (TaskRecipe(), "train", None, r"task\.data: got nothing, expected --data"),
        (TaskRecipe(data="nowhere"), "train", None, "nowhere does not exist"),
        (TaskRecipe(data=str(file)), "train", None, r"one file, which is read as the test split"),
        (TaskRecipe(data=str(file), text_column="body"), "test", None, r"expected body"),
        (TaskRecipe(data=str(file)), "test", ["hau", "yor"], r"one file for hau, yor; say with"),
        (TaskRecipe("token", data=str(file)), "test", None, r"task\.labels|task\.data"),
    ]
    for one, split, languages, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            open_task(one, split, languages)
        assert "\n" not in str(caught.value)
    for content in (b"", HEADER, HEADER + b"a\tmixed\n"):
        with pytest.raises(ValueError, match="has no train examples of hau"):
            open_task(afrisenti(tmp_path, content), "train", ["hau"])
    (tmp_path / "hau/train.csv").write_text("text,label\n")
    with pytest.raises(ValueError, match=r"train\.tsv and train\.csv are both there"):
        open_task(recipe, "train", ["hau"])
    with pytest.raises(ValueError, match=r"task\.labels: .*as afrisenti has its own"):
        TaskRecipe(labels=["a", "b"])
    with pytest.raises(ValueError, match=r"task\.labels: got \['PER'\], expected O, B-TYPE"):
        TaskRecipe("token", labels=["O", "PER"])
    with pytest.raises(ValueError, match=r"task\.languages: .*each once"):
        TaskRecipe(languages=["hau", "hau"])


def test_a_column_of_texts_is_no_column_of_labels(tmp_path):
    rows = "\n".join(f"text {number}\tlabel {number}" for number in range(300))
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + rows)
    with pytest.raises(ValueError, match=r"task\.label_column: .* more than 200 different labels"):
        open_task(TaskRecipe("sequence", data=str(tmp_path)), "train")


# The real data


@needs_real_data
@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("language", [*TRAINED, "pcm", "tso"])
def test_every_row_of_afrisenti_is_read_or_reported(language, split):
    data = open_task(TaskRecipe(data=str(DATA / "afrisenti")), split, [language])
    lines = (DATA / f"afrisenti/{language}/{split}.tsv").read_bytes().split(b"\n")
    accounted = {example.row for example in data.examples} | {row.line for row in data.problems}
    assert accounted == {number for number, line in enumerate(lines, 1) if line and number > 1}
    for example in data.examples:
        text, label = lines[example.row - 1].decode().split("\t")
        assert (example.text, data.task.labels[example.label]) == (text.strip(), label)


@needs_real_data
@pytest.mark.parametrize("language", TRAINED)
def test_every_word_of_masakhaner_is_read_or_reported(language):
    data = open_task(TaskRecipe("masakhaner", data=str(DATA / "masakhaner2")), "dev", [language])
    lines = (DATA / f"masakhaner2/{language}/dev.txt").read_bytes().decode().split("\n")
    read = [
        f"{word} {data.task.labels[label]}"
        for example in data.examples
        for word, label in zip(example.text, example.label, strict=True)
    ]
    assert read == [line for line in lines if line]
    assert not data.problems


def test_folders_and_rows_of_a_language_are_found_by_its_other_names(tmp_path):
    for folder in ("hau_Latn", "ee"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.tsv").write_text("text\tlabel\na\tno\nb\tyes\n")
    recipe = TaskRecipe(task="sequence", data=str(tmp_path), languages=["hau", "ewe"])
    assert open_task(recipe, "train").languages == ("hau", "ewe")
    assert open_task(replace(recipe, languages=None), "train").languages == ("ee", "hau_latn")
    file = tmp_path / "rows.tsv"
    file.write_text("text\tlabel\tlang\na\tno\tHausa\nb\tyes\tha\nc\tno\tyo\n")
    rows = TaskRecipe(task="sequence", train=str(file), language_column="lang", languages=["hau"])
    assert [one.text for one in open_task(rows, "train").examples] == ["a", "b"]
