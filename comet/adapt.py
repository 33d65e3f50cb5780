"""`python -m comet.adapt`: masked-language-model training of a teacher on a corpus.

From a checkpoint, this adapts XLM-R to one's languages as AfroXLMR was made (Alabi et al., 2022). From a
configuration, it makes a teacher where no hub is reached. Such a model first predicts pieces by their frequency,
then by their frequency in the language at hand; the entropies of both are printed, for a loss near them says that
nothing of the context was learnt yet. Short sequences in small batches and an architecture with normalised inputs and
rotary positions (ModernBERT, Warner et al., 2024) leave these plateaus soonest.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
)

from comet.batch import Batch, Counts, StepLosses, total_counts
from comet.batches import Masking, StepBatches, held_out, open_text
from comet.card import describing
from comet.configuration import parse_command, run_command
from comet.corpus import Corpus
from comet.coverage import coverage, coverage_table
from comet.entropy import piece_entropy
from comet.inputs import Input, model_inputs, text_input, tokenizer_input
from comet.memory_advice import advice, explained, sizes_of
from comet.objective import sums_by_language
from comet.pretrained import random_model
from comet.processes import copy_of, make_accelerator, on_main, say
from comet.recipe import VOCABULARY_SIZE, AdaptRecipe, ModelRecipe
from comet.runs import RunFolder, resolve
from comet.sources import corpus_facts, mixture
from comet.students import (
    count_parameters,
    keep_inputs_only,
    load_masked_lm,
    load_tokenizer,
    require_embedded,
    save_model,
    save_tokenizer,
)
from comet.tap import TappedEncoder, require_positions
from comet.tokenizers import train_tokenizer
from comet.trackers import Trackers
from comet.training import Training, Watching
from comet.watch import Watch

PROGRAM = "comet.adapt"
SHORTCUTS = {
    "--model": "model.model",
    "--tokenizer": "model.tokenizer",
    "--corpus": "corpus.paths",
    "--languages": "corpus.languages",
    "--output": "run.output",
    "--steps": "optimisation.steps",
    "--batch-size": "optimisation.batch_size",
    "--seed": "run.seed",
    "--compile": "optimisation.compile",
}
TOKENIZER_CHARACTERS = 10_000_000


class MaskedLanguageModel(nn.Module):
    """Cross-entropy of the masked tokens; logits are computed for those alone.

    Args:
        encoder: what is trained.
        languages: how many the corpus has.
    """

    def __init__(self, encoder: TappedEncoder, languages: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        self.languages = languages

    def forward(self, batch: Batch, totals: Counts | None = None) -> StepLosses:
        """The batch's share of the mean over the step's masked tokens, in nats; see `StepLosses`."""
        totals = total_counts([batch]) if totals is None else totals
        logits_NV, labels_N = self.masked_logits(batch)
        losses_N = nn.functional.cross_entropy(logits_NV.float(), labels_N, reduction="none")
        by_language = sums_by_language(losses_N.detach(), batch, self.languages)
        return StepLosses(losses_N.sum() / totals.masked, {}, by_language)

    def masked_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `[N, V]` and labels `[N]` of the masked tokens."""
        hidden = self.encoder(batch.input_ids, batch.mask).hidden.flatten(0, 1)
        chosen = hidden.index_select(0, batch.kd_positions)
        return self.encoder.logits(chosen), batch.labels.flatten()[batch.kd_positions]


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    given = parse_command(
        AdaptRecipe,
        argv,
        program=PROGRAM,
        description="Train a teacher by masked language modelling on a corpus.",
        shortcuts=SHORTCUTS,
        default_recipe=lambda flags: "adapt" if "model.model" in flags else "from-scratch",
    )
    folder, recipe = resolve(AdaptRecipe, given, PROGRAM)
    adapt(recipe, folder, resume=given.resume, resume_from=given.resume_from)


def adapt(
    recipe: AdaptRecipe, folder: Path, *, resume: bool = False, resume_from: int | None = None
) -> Path:
    """Train a masked language model.

    Args:
        recipe: the run.
        folder: the run folder; made.
        resume: go on from its newest checkpoint.
        resume_from: go on from the checkpoint of this step.

    Returns:
        The folder of the model and its tokenizer.

    Raises:
        ValueError: something the user can mend, in one line.
    """
    accelerator = make_accelerator(recipe.optimisation.precision)
    run = RunFolder(folder, recipe, resume=resume)
    if run.is_done:
        say(run.how_to_extend(PROGRAM))
        return folder / "model"
    trackers = Trackers(recipe.run.trackers, folder)
    corpus = open_text(recipe.corpus, recipe.run.seed)
    set_seed(recipe.run.seed)
    saved = folder / "tokenizer"
    model, tokenizer = make_model(recipe, corpus, saved if resume and saved.is_dir() else None)
    run.reads(on_main(lambda: _inputs(recipe, corpus)))
    masking = Masking(tokenizer, recipe.corpus.mask_probability, "masked", recipe.run.seed)
    batches = WarmStart(corpus, masking, recipe, accelerator)
    entropy = piece_entropy(corpus, tokenizer, recipe.corpus.max_length)
    covered = {
        language: coverage(tokenizer, texts) for language, texts in corpus.held_out().items()
    }
    if recipe.optimisation.gradient_checkpointing:
        keep_inputs_only(model)
    module = MaskedLanguageModel(TappedEncoder(model), len(corpus.languages))
    if recipe.optimisation.compile:
        module.encoder.compile(dynamic=True)
    texts = held_out(corpus, masking, recipe.optimisation.batch_size, recipe.corpus.max_length)
    sizes = sizes_of(model, processes=accelerator.num_processes)
    facts = corpus_facts(corpus, covered)
    with run.recorded(**facts), explained(lambda: advice(recipe, sizes)), closing(batches):
        if not on_main(lambda: resume and saved.is_dir()):
            on_main(lambda: save_tokenizer(tokenizer, saved))
        say(
            f"model    {count_parameters(model):,} parameters, {len(tokenizer):,} pieces\n"
            f"{mixture(corpus)}\n" + "\n".join(coverage_table(covered)) + "\n"
            f"entropy  {entropy} nats: a loss near these has learnt nothing of the context yet\n"
            f"output   {folder}",
        )
        watching = Watching(
            program=PROGRAM,
            languages=corpus.languages,
            watch=Watch(covered, measure="loss"),
            trackers=trackers,
            tokenizer=tokenizer,
            evaluate=lambda: {
                language: {"loss": value}
                for language, value in held_out_loss(module, texts, accelerator).items()
            },
            remark=f" ({entropy})",
        )
        training = Training(
            module, batches, recipe.optimisation, recipe.run, run, accelerator, watching
        )
        if resume:
            training.resume(resume_from)
            say(f"resuming at step {training.step}")
        trackers.start(accelerator, run.recipe, training.step)
        with closing(trackers):
            training.train()
            loss = held_out_loss(module, texts, accelerator)
            found = {language: {"loss": value} for language, value in loss.items()}
            training.tell_evaluation(found, say)
        run.write_json(
            "held_out.json",
            {
                "loss": loss,
                "entropy": entropy.single,
                "entropy_given_language": entropy.given_language,
            },
        )
        home = folder / "model"
        on_main(lambda: save_model(model, tokenizer, home, describing(home)))
    say(
        "\nHeld-out masked loss (nats)  "
        + "  ".join(f"{name} {value:.3f}" for name, value in loss.items())
        + f"\nto be compared with          {entropy}\n\nmodel  {folder / 'model'}"
    )
    return folder / "model"


def _inputs(recipe: AdaptRecipe, corpus: Corpus) -> dict[str, Input]:
    """What a run reads: text, and the model and tokenizer that it begins with."""
    wanted = recipe.model
    found = text_input(corpus, recipe.corpus.paths)
    if wanted.model is not None:
        found |= model_inputs("model", wanted.model, tokenizer=wanted.tokenizer is None)
    if wanted.tokenizer is not None:
        found |= tokenizer_input("tokenizer", wanted.tokenizer, flag="--tokenizer")
    return found


def make_model(
    recipe: AdaptRecipe, corpus: Corpus, saved: Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model to train and its tokenizer.

    Args:
        recipe: the run.
        corpus: what a tokenizer is trained on where none is given.
        saved: the folder where a run that is resumed keeps its tokenizer.

    Raises:
        ValueError: the model or tokenizer cannot be had, or has too few positions or embeddings.
    """
    wanted = recipe.model
    if wanted.model is not None:
        wanted = replace(wanted, model=copy_of(wanted.model))
    if wanted.tokenizer is not None:
        wanted = replace(wanted, tokenizer=copy_of(wanted.tokenizer))
    if wanted.model is not None:
        model = load_masked_lm(wanted.model, flag="--model", head_required=False)
        source = wanted.tokenizer or wanted.model
        tokenizer = load_tokenizer(source, flag="--tokenizer" if wanted.tokenizer else "--model")
    else:
        # the main process alone has the run folder
        tokenizer = on_main(lambda: _tokenizer(wanted, corpus, saved))
        model = random_model(AutoModelForMaskedLM, encoder_config(wanted, tokenizer))
    require_embedded(tokenizer, model.config, flag="--tokenizer" if wanted.tokenizer else "--model")
    lengths = {"corpus.max_length": recipe.corpus.max_length}
    if recipe.warm_start.steps:
        lengths["warm_start.max_length"] = recipe.warm_start.max_length
    for key, length in lengths.items():
        require_positions(model, length, key, "the model")
    return model, tokenizer


def encoder_config(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    """An encoder of the recipe's architecture and shape for a tokenizer."""
    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.hidden_size,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "intermediate_size": recipe.intermediate_size,
        "initializer_range": recipe.initial_deviation,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if recipe.architecture == "modernbert":
        return ModernBertConfig(
            **shared,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            max_position_embeddings=recipe.positions,
            embedding_dropout=recipe.dropout,
            attention_dropout=recipe.dropout,
            mlp_dropout=recipe.dropout,
            # every layer attends to all: windows save nothing at these lengths, and any layer can be matched
            layer_types=["full_attention"] * recipe.layers,
            rope_parameters={
                kind: {"rope_type": "default", "rope_theta": 10000.0}
                for kind in ("full_attention", "sliding_attention")
            },
            classifier_pooling="mean",  # the first token learns nothing of its own in masked language modelling
        )
    return XLMRobertaConfig(
        **shared,
        hidden_dropout_prob=recipe.dropout,
        attention_probs_dropout_prob=recipe.dropout,
        max_position_embeddings=recipe.positions + tokenizer.pad_token_id + 1,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )


class WarmStart:
    """Batches of short sequences for the first steps, of full length after them, over one text."""

    def __init__(
        self, corpus: Corpus, masking: Masking, recipe: AdaptRecipe, accelerator: Accelerator
    ) -> None:
        self._corpus = corpus
        self._masking = masking
        self._recipe = recipe
        self._accelerator = accelerator
        self._given = 0
        self._batches = self._start(None)

    def __next__(self) -> list[Batch]:
        if 0 < self._given == self._recipe.warm_start.steps:
            text = self._batches.text_state()
            self._batches.close()
            self._batches = self._start(text)
        self._given += 1
        return next(self._batches)

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON."""
        return {"given": self._given, **self._batches.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position."""
        self._batches.close()
        # batches are those of the last one given: the switch comes with the first full-length batch
        self._given = max(state["given"] - 1, 0)
        self._batches = self._start(None)
        self._given = state["given"]
        self._batches.load_state_dict(state)

    def close(self) -> None:
        """End the background processes."""
        self._batches.close()

    def _start(self, text: Mapping[str, Any] | None) -> StepBatches:
        short = self._given < self._recipe.warm_start.steps
        optimisation = self._recipe.optimisation
        lengths = self._recipe.warm_start if short else self._recipe.corpus
        probability = self._recipe.warm_start.mask_probability if short else None
        return StepBatches(
            self._corpus,
            replace(self._masking, probability=probability) if probability else self._masking,
            batch_size=self._recipe.warm_start.batch_size if short else optimisation.batch_size,
            batch_tokens=None if short else optimisation.batch_tokens,
            max_length=lengths.max_length,
            accumulation=optimisation.accumulation,
            process=self._accelerator.process_index,
            processes=self._accelerator.num_processes,
            workers=self._recipe.corpus.workers,
            text=text,
        )


def held_out_loss(
    module: MaskedLanguageModel,
    texts: Mapping[str, Sequence[Batch]],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Masked loss, in nats per masked token, by language; `all` is the mean over languages.

    Every process measures all of it.
    """
    module.eval()
    losses: dict[str, float] = {}
    with torch.no_grad(), accelerator.autocast():
        for language, batches in texts.items():
            summed = tokens = 0.0
            for batch in batches:
                count = len(batch.masked_positions)
                summed += module(batch.to(accelerator.device)).total.item() * count
                tokens += count
            losses[language] = summed / max(tokens, 1)
    module.train()
    return {**losses, "all": sum(losses.values()) / len(losses)}


def _tokenizer(recipe: ModelRecipe, corpus: Corpus, saved: Path | None) -> PreTrainedTokenizerFast:
    if saved is not None:
        return load_tokenizer(str(saved), flag="--resume")
    if recipe.tokenizer is not None:
        return load_tokenizer(recipe.tokenizer, flag="--tokenizer")
    size = recipe.vocabulary_size or VOCABULARY_SIZE
    say(f"training a tokenizer of {size:,} pieces")
    tokenizer = train_tokenizer(
        _sample(corpus),
        size,
        recipe.positions,
        lowercase=recipe.lowercase,
        or_fewer=recipe.vocabulary_size is None,
    )
    if len(tokenizer) < size:
        say(f"model.vocabulary_size: the corpus yields {len(tokenizer):,} pieces, not {size:,}")
    return tokenizer


def _sample(corpus: Corpus) -> Iterator[str]:
    """Text of the training mixture: about one epoch, within a limit."""
    counts = [count for count in corpus.counts.values() if count is not None]
    documents = itertools.islice(corpus.training_stream(), sum(counts) or None)
    characters = 0
    for document in documents:
        yield document.text
        characters += len(document.text)
        if characters > TOKENIZER_CHARACTERS:
            return


if __name__ == "__main__":
    run_command(main, PROGRAM)
