import io
import json
import os
import sys

import pytest
from tuned_models import SENTIMENT, save_tiny

from comet import predict
from comet.classifier import Classifier
from comet.streams import outlasting
from comet.toy import toy_sentences

TEXTS = toy_sentences("hau", 30)


class Input(io.BytesIO):
    """Of which a test says whether it can be read twice."""


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentiment")
    for seed, dev in ((0, 0.4), (1, 0.7)):
        save_tiny(folder / f"seed-{seed}/model", tokenizer, seed=seed, dev=dev)
    save_tiny(folder / "names", tokenizer, "token", seed=6)
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    def called(given, *arguments):
        monkeypatch.setattr(predict, "_input", lambda: io.BytesIO(given))
        predict.main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        return out.splitlines(), err

    return called


def lines_of(texts):
    return "".join(f"{text}\n" for text in texts).encode()


def test_every_line_is_answered_in_order_across_chunks(run, folder, monkeypatch):
    monkeypatch.setattr(predict, "_CHUNK", 7)
    out, err = run(lines_of(TEXTS), "--model", folder, "--batch-size", "3")
    assert "seed-1/model, of 2 seeds the best on dev" in err
    records = [json.loads(line) for line in out]
    assert [record["text"] for record in records] == TEXTS
    expected = Classifier(folder / "seed-1").predict(TEXTS)
    assert [record["label"] for record in records] == [one.label for one in expected]
    for record, one in zip(records, expected, strict=True):
        assert record["probabilities"] == pytest.approx(one.probabilities, abs=1e-6)


def test_lines_without_text_have_no_answer_and_are_counted(run, folder):
    given = b"\xef\xbb\xbf" + TEXTS[0].encode() + b"\r\n\n \t\n" + TEXTS[1].encode()
    out, err = run(given, "--model", folder)
    records = [json.loads(line) for line in out]
    assert [record["text"] for record in records] == [
        TEXTS[0],
        "",
        " \t",
        TEXTS[1],
    ]
    assert [record["label"] is None for record in records] == [False, True, True, False]
    assert records[1] == {"text": "", "label": None, "probabilities": None}
    assert "2 of 4 lines hold no text" in err
    assert run(b"", "--model", folder)[0] == []
    out, _ = run(b"\n", "--model", folder / "names")
    assert json.loads(out[0]) == {"text": "", "entities": None}


@pytest.mark.parametrize("through_a_pipe", [False, True])
def test_input_in_another_encoding_is_refused_with_one_line(
    run, folder, monkeypatch, capsys, through_a_pipe
):
    monkeypatch.setattr(predict, "_CHUNK", 8)
    texts = [*TEXTS[:20], "caf\u00e9 \u00e0 la", *TEXTS[20:]]
    cases = {
        "latin-1": r"line 21 is not in UTF-8 \(byte 0xe9\); convert it: iconv -f WINDOWS-1252 -t UTF-8",
        "cp1252": "line 21 is not in UTF-8",
        "UTF-16": "it is in UTF-16, expected UTF-8; convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW",
        "UTF-16LE": "line 1 holds NUL characters",
    }
    for encoding, message in cases.items():
        content = "".join(f"{text}\n" for text in texts).encode(encoding, errors="replace")
        given = Input(content)
        given.seekable = lambda: not through_a_pipe
        monkeypatch.setattr(predict, "_input", lambda given=given: given)
        with pytest.raises(ValueError, match=f"input: {message}") as error:
            predict.main(["--model", str(folder / "seed-0")])
        assert "\n" not in str(error.value)
        written = capsys.readouterr().out
        answered = 16 if through_a_pipe and "21" in message else 0
        assert [json.loads(line)["text"] for line in written.splitlines()] == [
            text.encode(encoding, errors="replace").decode(encoding) for text in TEXTS[:answered]
        ]


def test_columns_separated_by_tabs(run, folder):
    out, _ = run(b"one\ttwo\n\n", "--model", folder, "--format", "tsv")
    label, probability, text = out[0].split("\t")
    assert label in SENTIMENT
    assert 0.33 < float(probability) <= 1
    assert text == "one two"
    assert out[1] == "\t\t"


def test_entities_have_places(run, folder):
    text = " ".join(TEXTS[:4])
    (found,) = Classifier(folder / "names").entities([text])
    assert found
    out, _ = run(lines_of(["", text]), "--model", folder / "names")
    assert json.loads(out[1])["entities"] == [vars(one) for one in found]
    out, _ = run(lines_of(["", text]), "--model", folder / "names", "--format", "tsv")
    assert out == [f"2\t{one.type}\t{one.start}\t{one.end}\t{one.text}" for one in found]


def test_a_wrong_option_ends_with_one_line(run, folder):
    for arguments, message in (
        ([], "--model"),
        (["--model", folder, "--batch-size", "0"], "--batch-size"),
        (["--model", folder, "--format", "xml"], "--format"),
    ):
        with pytest.raises(ValueError, match=message):
            run(b"", *arguments)


def test_the_command_stops_quietly_when_nobody_reads_on(folder, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(predict, "_input", lambda: io.BytesIO(lines_of(TEXTS)))
    with open(writer, "w", buffering=1) as closed:
        monkeypatch.setattr(sys, "stdout", outlasting(closed))
        with pytest.raises(SystemExit) as ended:
            predict.main(["--model", str(folder / "seed-0")])
    assert ended.value.code == 141
