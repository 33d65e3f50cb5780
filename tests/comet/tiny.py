"""Models and recipes small enough for a test."""

from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedModel,
    XLMRobertaConfig,
)

SPECIAL = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
CONFIGURATIONS = {
    "xlm-r": (XLMRobertaConfig, {**SPECIAL, "type_vocab_size": 1}),
    "bert": (BertConfig, {"pad_token_id": 1}),
    "electra": (ElectraConfig, {"pad_token_id": 1, "embedding_size": 16}),
    "modernbert": (ModernBertConfig, {**SPECIAL, "cls_token_id": 0, "sep_token_id": 2}),
}


def tiny_model(architecture: str, vocabulary_size: int = 120, **sizes: int) -> PreTrainedModel:
    """A model with random weights large enough that its attention is not flat."""
    kind, special = CONFIGURATIONS[architecture]
    shape = {
        "vocab_size": vocabulary_size,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 66,
        "initializer_range": 0.2,
        **sizes,
    }
    return AutoModelForMaskedLM.from_config(kind(**shape, **special)).eval()


TINY_STUDENT = [
    "--student.layers", "2",
    "--student.hidden_size", "16",
    "--student.heads", "2",
    "--student.intermediate_size", "24",
    "--student.initial", "random",
]  # fmt: skip
TINY_RUN = [
    *TINY_STUDENT,
    "--objective.projection", "kronecker",
    "--objective.projection_terms", "2",
    "--corpus.max_length", "24",
    "--corpus.held_out", "8",
    "--optimisation.warmup_steps", "1",
    "--corpus.workers", "0",
    "--batch-size", "8",
    "--run.log_every", "2",
    "--run.checkpoint_every", "3",
]  # fmt: skip
